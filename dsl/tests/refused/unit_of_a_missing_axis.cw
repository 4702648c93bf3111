recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input a: [K] in unit(V)
    S = S + a * v
    output o: [V] = q @ S
}

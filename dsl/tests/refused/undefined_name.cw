recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    S = S + beta * k * v
    output o: [V] = q @ S
}

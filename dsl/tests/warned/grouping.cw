recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input u: [K]
    S = S + k * v
    output o: [V] = q * u @ S
}

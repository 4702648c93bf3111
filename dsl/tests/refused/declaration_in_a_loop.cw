recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis R
    for r in R {
        input e: [K]
        S = S + e * v
    }
    output o: [V] = q @ S
}

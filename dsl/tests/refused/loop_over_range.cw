recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis R
    input e: [R, K]
    for r in range(R) {
        S = S + e[r] * v
    }
    output o: [V] = q @ S
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    state n: [K]
    S = S + n * v
    n = n + sigmoid(S @ v) * k
    output o: [V] = q @ S
}

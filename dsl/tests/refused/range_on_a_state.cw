recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    state n: [K] in [0, 1]
    n = n + k
    S = S + k * v
    output o: [V] = (n @ k) * (q @ S)
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    const scale = sum(k, K)
    S = S + scale * k * v
    output o: [V] = q @ S
}

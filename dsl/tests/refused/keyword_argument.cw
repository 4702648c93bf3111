recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    let n = sum(k * k, axis=K)
    S = S + n * k * v
    output o: [V] = q @ S
}

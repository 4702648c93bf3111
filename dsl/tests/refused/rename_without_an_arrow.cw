recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis L
    let p = rename(q, K, L)
    S = S + k * v
    output o: [V] = sum(p, L) * (q @ S)
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    let m = sum(k, -1)
    S = S + m * k * v
    output o: [V] = q @ S
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    S = S + p * v
    let p = k * 2
    output o: [V] = q @ S
}

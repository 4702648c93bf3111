recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis N
    const scale = K ^ -0.5
    let p = q * 2
    S = S + k * v
    output o: [V] = q @ S
}

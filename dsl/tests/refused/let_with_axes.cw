recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    let p: [K] = q * 2
    S = S + k * v
    output o: [V] = p @ S
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    S = k * v / S
    output o: [V] = q @ S
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    const scale = K ** -0.5
    S = S + k * v
    output o: [V] = scale * q @ S
}

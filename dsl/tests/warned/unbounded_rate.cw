recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input dt: [], a: []
    let rate = exp(dt * a)
    S = rate * S + k * v
    output o: [V] = q @ S
}

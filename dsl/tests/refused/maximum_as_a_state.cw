recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    state m: []
    input i: []
    m = max(m, i)
    S = exp(i - m) * k * v + S
    output o: [V] = q @ S
}

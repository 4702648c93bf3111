recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input g: [T] in (-inf, 0]
    S = exp(g) * S + k * v
    output o: [V] = q @ S
}

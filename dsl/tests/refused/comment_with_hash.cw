recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    # the delta rule
    S = S + k * v     # write
    output o: [V] = q @ S
}

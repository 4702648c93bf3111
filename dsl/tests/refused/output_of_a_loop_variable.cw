recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis R
    for r in R {
        r = r + 1
        S = S + r * k * v
    }
    output o: [V] = q @ S
}

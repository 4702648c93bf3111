recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis R
    input e: [R, K]
    for r in R {
        let p = e[r] * 2
        S = S + p * v
    }
    output o: [V] = p @ S
}

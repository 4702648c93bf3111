recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    axis Rows
    input e: [Rows, K]
    S = S + sum(e, Row) * v
    output o: [V] = q @ S
}

recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input beta: [] in [0, 1]
    S = S + beat * k * v
    output o: [V] = q @ S
}

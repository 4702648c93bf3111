recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    input g: [J] in (-inf, 0]
    let p = sigmod(q)
    S = exp(g) S + k * v
    S = S + k @ v
    output o: [V] = r @ S
}

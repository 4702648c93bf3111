recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    let r = k @ S
    let e = r * r
    S = S + k * (v - e)
    output o: [V] = q @ S
}

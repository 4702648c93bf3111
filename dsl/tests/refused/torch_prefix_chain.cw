recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    let p = torch.nn.functional.silu(q)
    S = S + k * v
    output o: [V] = p @ S
}

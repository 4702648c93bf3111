recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    S[t] = S[t-1] + k[t] * v[t]
    output o: [V] = q @ S
}

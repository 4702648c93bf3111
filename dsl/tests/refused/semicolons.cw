recurrence example {
    axis K, V
    input q: [K], k: [K] in unit(K), v: [V]
    state S: [K, V]
    S = S + k * v;
    let p = q * 2;
    output o: [V] = p @ S;
}

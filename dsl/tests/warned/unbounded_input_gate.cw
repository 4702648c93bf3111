recurrence open {
    axis K, V
    input q: [K], k: [K], v: [V]
    input i: [], f: []
    state S: [K, V], n: [K]
    let write = exp(i) * k
    S = sigmoid(f) * S + write * v
    n = sigmoid(f) * n + exp2(90 + 50 * sigmoid(i)) * k
    output o: [V] = q @ S / (1 + abs(q @ n))
}

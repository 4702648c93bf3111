recurrence example {
    axis K, V
    input k: [K], v: [V]
    state S: [K, V]
    S = S + k * v
}

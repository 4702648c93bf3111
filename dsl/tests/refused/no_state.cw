recurrence example {
    axis K
    input q: [K], k: [K]
    output o: [] = q @ k
}

/// Delta rule. Schlag, Irie, Schmidhuber 2021 (arXiv 2102.11174); Yang, Wang, Zhang, Shen, Kim 2024 (arXiv 2406.06484):
/// S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t.
recurrence delta_rule {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    input beta: [] in [0, 1]
    const scale = K ^ -0.5

    state S: [K, V]

    S = S + k * (beta * (v - k @ S))

    output o: [V] = scale * q @ S
}

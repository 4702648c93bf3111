/// Gated linear attention with a scalar gate. Yang, Wang, Shen, Panda, Kim 2023 (arXiv 2312.06635),
/// the gate the same for every row: S_t = α_t S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t. `g` is log α.
recurrence simple_gla {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    input g: [] in (-inf, 0]
    const scale = K ^ -0.5

    state S: [K, V]

    S = exp(g) * S + k * v

    output o: [V] = scale * q @ S
}

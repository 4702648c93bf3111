/// Gated linear attention whose gates may close quickly. Yang, Wang, Shen, Panda, Kim 2023 (arXiv 2312.06635):
/// S_t = Diag(α_t) S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t. `g` is log α, here never below -4.
recurrence gla_strong_decay {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    input g: [K] in [-4, 0]
    const scale = K ^ -0.5

    state S: [K, V]

    S = exp(g) * S + k * v

    output o: [V] = scale * q @ S
}

/// Kimi delta attention. Kimi Team 2025 (arXiv 2510.26692):
/// S_t = (I - β_t k_t k_tᵀ) Diag(α_t) S_{t-1} + β_t k_t v_tᵀ, o_t = S_tᵀ q_t. `g` is log α.
recurrence kda {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    input g: [K] in (-inf, 0]
    input beta: [] in [0, 1]
    const scale = K ^ -0.5

    state S: [K, V]

    S = exp(g) * S
    S = S + k * (beta * (v - k @ S))

    output o: [V] = scale * q @ S
}

/// RWKV-7 (Goose). Peng et al. 2025 (arXiv 2503.14456):
/// S_t = (Diag(w_t) - (κ_t ⊙ η_t) κ_tᵀ) S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ r_t. Here `w` is the logarithm of the decay.
recurrence rwkv7 {
    axis K, V

    input r: [K], w: [K] in (-inf, 0], k: [K], v: [V]
    input kappa: [K] in unit(K), eta: [K] in [0, 1]

    state S: [K, V]

    S = exp(w) * S - (kappa * eta) * (kappa @ S) + k * v  // kappa reads the state before its decay

    output o: [V] = r @ S
}

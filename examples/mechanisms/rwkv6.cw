/// RWKV-6 (Finch). Peng et al. 2024 (arXiv 2404.05892):
/// o_t = (S_{t-1} + Diag(u) k_t v_tᵀ)ᵀ r_t, S_t = Diag(w_t) S_{t-1} + k_t v_tᵀ. Here `w` is the logarithm of the decay.
recurrence rwkv6 {
    axis K, V

    input r: [K], k: [K], v: [V]
    input w: [K] in (-inf, 0]
    param u: [K]

    state S: [K, V]

    output o: [V] = r @ (S + u * k * v)  // reads the old state, and the new token with a bonus

    S = exp(w) * S + k * v
}

/// Linear attention. Katharopoulos, Vyas, Pappas, Fleuret 2020 (arXiv 2006.16236),
/// with the identity as feature map and without the normaliser: S_t = S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t.
recurrence linear_attention {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    const scale = K ^ -0.5

    state S: [K, V]

    S = S + k * v

    output o: [V] = scale * q @ S
}

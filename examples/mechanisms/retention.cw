/// Retention. Sun, Dong, Huang, Ma, Xia, Xue, Wang, Wei 2023 (arXiv 2307.08621), recurrent form:
/// S_t = γ S_{t-1} + k_t v_tᵀ, o_t = S_tᵀ q_t, with one decay for each head. `gamma` is its logarithm.
recurrence retention {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    param gamma: [] in (-inf, 0]
    const scale = K ^ -0.5

    state S: [K, V]

    S = exp(gamma) * S + k * v

    output o: [V] = scale * q @ S
}

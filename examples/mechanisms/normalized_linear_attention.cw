/// Linear attention with its normaliser. Katharopoulos, Vyas, Pappas, Fleuret 2020 (arXiv 2006.16236),
/// feature map elu(x) + 1: S_t = S_{t-1} + φ(k_t) v_tᵀ, z_t = z_{t-1} + φ(k_t), o_t = S_tᵀ φ(q_t) / z_tᵀ φ(q_t).
recurrence normalized_linear_attention {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    let phi_q = elu(q) + 1
    let phi_k = elu(k) + 1

    state S: [K, V], z: [K]

    S = S + phi_k * v
    z = z + phi_k

    output o: [V] = (phi_q @ S) / (phi_q @ z)
}

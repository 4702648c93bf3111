/// Mamba. Gu, Dao 2023 (arXiv 2312.00752), the selective scan: h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t x_t b_tᵀ,
/// y_t = h_t c_t + D ⊙ x_t.
recurrence mamba1 {
    axis V, N

    input x: [V], dt: [V] in [0, inf), b: [N], c: [N]
    param A: [V, N] in (-inf, 0], D: [V]

    state h: [V, N]

    h = exp(dt * A) * h + dt * x * b

    output y: [V] = h @ c + D * x
}

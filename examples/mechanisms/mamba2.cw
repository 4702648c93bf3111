/// Mamba-2. Dao, Gu 2024 (arXiv 2405.21060), state space duality: S_t = exp(Δ_t a) S_{t-1} + Δ_t b_t x_tᵀ,
/// y_t = S_tᵀ c_t + D x_t.
recurrence mamba2 {
    axis K, V

    input x: [V], dt: [] in [0, inf), b: [K], c: [K]
    param a: [] in (-inf, 0], D: []

    state S: [K, V]

    S = exp(dt * a) * S + dt * b * x

    output y: [V] = c @ S + D * x
}

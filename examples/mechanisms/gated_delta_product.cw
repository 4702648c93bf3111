/// Gated DeltaProduct. Siems, Carstensen, Zela, Hutter, Pontil, Grazzi 2025 (arXiv 2502.10297):
/// S_t = g_t Π_r (I - β_{t,r} k_{t,r} k_{t,r}ᵀ) S_{t-1} + …, the gate once for each token, then R steps of the delta rule.
recurrence gated_delta_product {
    axis K, V, R

    input q: [K], k: [R, K] in unit(K), v: [R, V]
    input g: [] in (-inf, 0], beta: [R] in [0, 2]
    const scale = K ^ -0.5

    state S: [K, V]

    S = exp(g) * S
    for r in R {
        S = S + k[r] * (beta[r] * (v[r] - k[r] @ S))
    }

    output o: [V] = scale * q @ S
}

/// mLSTM. Beck et al. 2024 (arXiv 2405.04517), matrix memory with exponential input gate:
/// C_t = f_t C_{t-1} + i_t v_t k_tᵀ, n_t = f_t n_{t-1} + i_t k_t, h_t = C_t q_t / max(|n_tᵀ q_t|, 1).
/// `i` and `f` are the gates before their activation. No running maximum is kept: exp(i) has to fit into float32.
recurrence mlstm {
    axis K, V

    input q: [K], k: [K] in unit(K), v: [V]
    input i: [] in [-15, 5], f: []
    const scale = K ^ -0.5

    state S: [K, V], n: [K]

    S = exp(logsigmoid(f)) * S + exp(i) * k * v
    n = exp(logsigmoid(f)) * n + exp(i) * k

    output o: [V] = (scale * q @ S) / max(abs(scale * q @ n), 1)
}

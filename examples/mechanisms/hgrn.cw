/// HGRN. Qin, Yang, Zhong 2023 (arXiv 2311.04823): h_t = f_t ⊙ h_{t-1} + (1 - f_t) ⊙ i_t.
/// `f` is the gate before its sigmoid.
recurrence hgrn {
    axis V

    input f: [V], i: [V]
    let a = sigmoid(f)

    state h: [V]

    h = a * h + (1 - a) * i

    output o: [V] = h
}

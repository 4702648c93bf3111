"""Chunked linear attention, gated delta rule and KDA in PyTorch operations, on the processor.

The competitor of `cargo xtask bench`: what somebody without a kernel would write. Each mechanism has a form that
prepares all chunks together and loops over chunks for the state alone (`batched`), and one that does everything inside
the loop (`loop`); the faster of the two is what counts. Gradients are PyTorch's own.

    python torch_chunked.py --mechanism gated_delta_rule --runs 7 [--check]

prints one JSON line per form: median seconds forward, and forward with backward.
"""
import argparse
import json
import statistics
import time

import torch


def split(x, chunk):
    """[B, T, H, …] to [B, H, N, C, …]."""
    b, t, h = x.shape[:3]
    return x.reshape(b, t // chunk, chunk, h, *x.shape[3:]).movedim(3, 1)


def join(x):
    """[B, H, N, C, V] to [B, T, H, V]."""
    b, h, n, c, v = x.shape
    return x.movedim(1, 3).reshape(b, n * c, h, v)


def linear_attention(q, k, v, *, chunk, batched):
    scale = q.shape[-1] ** -0.5
    q, k, v = split(q * scale, chunk), split(k, chunk), split(v, chunk)
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    if batched:
        intra = (q @ k.mT).tril() @ v
        written = k.mT @ v
        before = torch.cat([torch.zeros_like(written[:, :, :1]), written.cumsum(2)[:, :, :-1]], 2)
        return join(intra + q @ before), state + written.sum(2)
    out = []
    # `unbind`, not slices: the gradient of a slice is a whole tensor of zeros.
    for qn, kn, vn in zip(q.unbind(2), k.unbind(2), v.unbind(2)):
        out.append(qn @ state + (qn @ kn.mT).tril() @ vn)
        state = state + kn.mT @ vn
    return join(torch.stack(out, 2)), state


def delta_chunks(q, k, v, g, beta, chunk, pairs):
    """What a gated delta rule needs of every chunk; `pairs(a, b)` is Σ_k a_i b_j decay(j → i), lower triangular."""
    eye = torch.eye(chunk, dtype=q.dtype)
    lower = pairs(beta[..., None] * k, k).tril(-1)
    attention = pairs(q, k).tril()
    decay = g.cumsum(-2)
    rhs = torch.cat([beta[..., None] * v, beta[..., None] * k * decay.exp()], -1)
    solved = torch.linalg.solve_triangular(eye + lower, rhs, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    last = decay[..., -1:, :]
    return attention, u, w, q * decay.exp(), k * (last - decay).exp(), last.mT.exp()


def delta_pass(chunks, state):
    """The chunks in order; `unbind`, not slices: the gradient of a slice is a whole tensor of zeros."""
    out = []
    for attention, u, w, q_in, k_out, total in chunks:
        x = u - w @ state
        out.append(q_in @ state + attention @ x)
        state = total * state + k_out.mT @ x
    return join(torch.stack(out, 2)), state


def gated_delta(q, k, v, g, beta, *, chunk, batched):
    """g is [B, T, H] or [B, T, H, K]."""
    scale = q.shape[-1] ** -0.5
    q, k, v, beta = split(q * scale, chunk), split(k, chunk), split(v, chunk), split(beta, chunk)
    on_k = g.dim() == 4
    g = split(g, chunk)
    g = g if on_k else g[..., None]

    def pairs_of(decay):
        if not on_k:
            c = decay.cumsum(-2)[..., 0]
            mask = torch.ones(chunk, chunk, dtype=torch.bool).tril()
            factor = (c[..., :, None] - c[..., None, :]).masked_fill(~mask, float("-inf")).exp()
            return lambda a, b: (a @ b.mT) * factor
        c = decay.cumsum(-2)

        def pairs(a, b):
            # A column at a time: the decay stands inside the sum.
            columns = []
            for j in range(chunk):
                later = (c[..., j:, :] - c[..., j : j + 1, :]).exp()
                column = ((a[..., j:, :] * later) * b[..., j : j + 1, :]).sum(-1)
                columns.append(torch.nn.functional.pad(column, (j, 0)))
            return torch.stack(columns, -1)

        return pairs

    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    if batched:
        parts = delta_chunks(q, k, v, g, beta, chunk, pairs_of(g))
        return delta_pass(zip(*(part.unbind(2) for part in parts)), state)
    chunks = zip(*(x.unbind(2) for x in (q, k, v, g, beta)))
    return delta_pass((delta_chunks(*one, chunk, pairs_of(one[3])) for one in chunks), state)


MECHANISMS = {"linear_attention": linear_attention, "gated_delta_rule": gated_delta, "kda": gated_delta}


def draw(name, b, t, h, d):
    torch.manual_seed(0)
    q, k, v = (torch.randn(b, t, h, d) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    tensors = [q, k, v]
    if name != "linear_attention":
        shape = (b, t, h, d) if name == "kda" else (b, t, h)
        tensors.append(torch.nn.functional.logsigmoid(torch.randn(shape) + 2))
        tensors.append(torch.rand(b, t, h) * 0.96 + 0.02)
    return tensors


def token_by_token(q, k, v, g=None, beta=None):
    """The recurrence as it is written."""
    state = q.new_zeros(q.shape[0], q.shape[2], k.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        if g is not None:
            gt = g[:, t] if g.dim() == 4 else g[:, t, :, None]
            state = gt.exp()[..., None] * state
        value = v[:, t]
        if beta is not None:
            value = beta[:, t, :, None] * (value - (k[:, t, :, None] @ state)[..., 0, :])
        state = state + k[:, t, :, :, None] * value[..., None, :]
        out.append((q[:, t, :, None] * q.shape[-1] ** -0.5 @ state)[..., 0, :])
    return torch.stack(out, 1), state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mechanism", choices=MECHANISMS, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs=4, default=[1, 4096, 8, 128], metavar=("B", "T", "H", "D"))
    parser.add_argument("--check", action="store_true", help="compare with the recurrence instead of timing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    function = MECHANISMS[options.mechanism]
    names = ["q", "k", "v"] + (["g", "beta"] if options.mechanism != "linear_attention" else [])
    if options.check:
        tensors = [x.double() for x in draw(options.mechanism, 2, 128, 3, 16)]
        expected, last = token_by_token(*tensors)
        for batched in (True, False):
            found, state = function(*tensors, chunk=32, batched=batched)
            error = max(((found - expected).norm() / expected.norm()).item(), ((state - last).norm() / last.norm()).item())
            assert error < 1e-12, (options.mechanism, batched, error)
        print(f"{options.mechanism}: both forms equal the token-by-token recurrence")
        return
    tensors = draw(options.mechanism, *options.sizes)
    for batched in (True, False):
        call = lambda: function(*tensors, chunk=options.chunk, batched=batched)
        with torch.no_grad():
            call()
            forward = []
            for _ in range(options.runs):
                begin = time.perf_counter()
                call()
                forward.append(time.perf_counter() - begin)
        leaves = [x.clone().requires_grad_() for x in tensors]
        both = []
        for run in range(options.runs + 1):
            begin = time.perf_counter()
            out, state = function(*leaves, chunk=options.chunk, batched=batched)
            torch.autograd.grad([out, state], leaves, [torch.ones_like(out), torch.ones_like(state)])
            if run:
                both.append(time.perf_counter() - begin)
        print(
            json.dumps(
                {
                    "mechanism": options.mechanism,
                    "form": "batched" if batched else "loop",
                    "forward_s": statistics.median(forward),
                    "forward_backward_s": statistics.median(both),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()

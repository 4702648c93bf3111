"""The kernels of flash-linear-attention on the same GPU, measured as `chunkwise bench` measures ours.

    python3 gpu_peers.py --only gated_delta_rule,kda --shapes 8x2048x16 >peers.jsonl
    python3 gpu.py speed --only gated_delta_rule,kda --shapes 8x2048x16 --peers peers.jsonl

A time is the median between two events around one run, with the GPU's cache emptied before it. Many of these operations
launch several kernels from Python, and small ones would wait for Python: so each run is also captured in a CUDA graph and
timed as a replay, and the smaller of the two counts (`how` says which). The floor is what `chunkwise bench` calls so, from
the tensors of this call: inputs read and outputs written once, for gradients the cotangent and the inputs read again.

Every mechanism has a process of its own. All of them compile side by side first; then they tune and are timed one after
another, alone on the GPU. `--cap` limits the configurations that each kernel is tuned over, since tuning over all of them
takes minutes a mechanism.

It needs torch, fla-core, and a Triton that fla-core takes. The rows are JSON lines on standard output; what goes wrong is on
standard error.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading

SHAPES = ["8x2048x16", "2x16384x16", "1x32768x8", "1x131072x8"]
WIDTH = 128


# ---------------------------------------------------------------- the operations, under our names


def normal(*shape):
    import torch

    return torch.randn(*shape, device="cuda").to(torch.bfloat16)


def unit(*shape):
    import torch

    return torch.nn.functional.normalize(torch.randn(*shape, device="cuda"), dim=-1).to(torch.bfloat16)


def log_decay(*shape, dtype=None):
    """Negative, mostly near zero, as in a trained model."""
    import torch

    return (torch.nn.functional.logsigmoid(torch.randn(*shape, device="cuda") + 3)).to(dtype or torch.float32)


def strength(*shape):
    import torch

    return torch.rand(*shape, device="cuda").to(torch.bfloat16)


def linear_attention(b, t, h):
    from fla.ops.linear_attn import chunk_linear_attn

    given = {name: normal(b, t, h, WIDTH) for name in ("q", "k", "v")}
    return given, lambda it: chunk_linear_attn(**it, normalize=False)[0]


def retention(b, t, h):
    from fla.ops.retention import chunk_retention

    given = {name: normal(b, t, h, WIDTH) for name in ("q", "k", "v")}
    return given, lambda it: chunk_retention(**it)[0]


def simple_gla(b, t, h):
    from fla.ops.simple_gla import chunk_simple_gla

    given = {name: normal(b, t, h, WIDTH) for name in ("q", "k", "v")}
    return {**given, "g": log_decay(b, t, h)}, lambda it: chunk_simple_gla(**it)[0]


def gla(b, t, h):
    import torch
    from fla.ops.gla import chunk_gla

    given = {name: normal(b, t, h, WIDTH) for name in ("q", "k", "v")}
    return {**given, "g": log_decay(b, t, h, WIDTH, dtype=torch.bfloat16)}, lambda it: chunk_gla(**it)[0]


def rwkv6(b, t, h):
    import torch
    from fla.ops.rwkv6 import chunk_rwkv6

    given = {name: normal(b, t, h, WIDTH) for name in ("r", "k", "v")}
    given |= {"w": log_decay(b, t, h, WIDTH, dtype=torch.bfloat16), "u": normal(h, WIDTH)}
    return given, lambda it: chunk_rwkv6(**it)[0]


def rwkv7(b, t, h):
    import torch
    from fla.ops.rwkv7 import chunk_rwkv7

    removal = unit(b, t, h, WIDTH)
    given = {
        "r": normal(b, t, h, WIDTH), "w": log_decay(b, t, h, WIDTH, dtype=torch.bfloat16).clamp(min=-0.6), "k": normal(b, t, h, WIDTH),
        "v": normal(b, t, h, WIDTH), "a": -removal, "b": removal * strength(b, t, h, WIDTH),
    }
    return given, lambda it: chunk_rwkv7(**it, safe_gate=True, chunk_size=64)[0]


def delta_rule(b, t, h):
    from fla.ops.delta_rule import chunk_delta_rule

    given = {"q": normal(b, t, h, WIDTH), "k": unit(b, t, h, WIDTH), "v": normal(b, t, h, WIDTH), "beta": strength(b, t, h)}
    return given, lambda it: chunk_delta_rule(**it)[0]


def gated_delta_rule(b, t, h):
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    given = {"q": normal(b, t, h, WIDTH), "k": unit(b, t, h, WIDTH), "v": normal(b, t, h, WIDTH)}
    return {**given, "g": log_decay(b, t, h), "beta": strength(b, t, h)}, lambda it: chunk_gated_delta_rule(**it)[0]


def gated_delta_product(b, t, h):
    from fla.ops.gated_delta_product import chunk_gated_delta_product

    given = {"q": normal(b, t, h, WIDTH), "k": unit(b, 2 * t, h, WIDTH), "v": normal(b, 2 * t, h, WIDTH)}
    given |= {"g": log_decay(b, t, h), "beta": strength(b, 2 * t, h)}
    return given, lambda it: chunk_gated_delta_product(**it, num_householder=2)[0]


def kda(b, t, h):
    import torch
    from fla.ops.kda import chunk_kda

    given = {"q": normal(b, t, h, WIDTH), "k": unit(b, t, h, WIDTH), "v": normal(b, t, h, WIDTH)}
    given |= {"g": log_decay(b, t, h, WIDTH, dtype=torch.bfloat16).clamp(min=-5), "beta": strength(b, t, h)}
    return given, lambda it: chunk_kda(**it, safe_gate=True, lower_bound=-5)[0]


def hgrn(b, t, h):
    import torch
    from fla.ops.hgrn import fused_recurrent_hgrn

    given = {"x": normal(b, t, h * WIDTH), "g": log_decay(b, t, h * WIDTH, dtype=torch.bfloat16)}
    return given, lambda it: fused_recurrent_hgrn(**it)[0]


MECHANISMS = {
    it.__name__: it
    for it in (linear_attention, retention, simple_gla, gla, rwkv6, rwkv7, delta_rule, gated_delta_rule, gated_delta_product, kda, hgrn)
}


# ---------------------------------------------------------------- one mechanism


def limit_tuning(most):
    """Lets every kernel be tuned over so many configurations at most, spread over its list. Gives all tuners."""
    from triton.runtime.autotuner import Autotuner

    tuners, begin = [], Autotuner.__init__

    def limited(self, fn, arg_names, configs, *arguments, **named):
        if most and configs and len(configs) > most:
            configs = [configs[at * len(configs) // most] for at in range(most)]
        begin(self, fn, arg_names, configs, *arguments, **named)
        tuners.append(self)

    Autotuner.__init__ = limited
    return tuners


class Timer:
    """Medians between events, the cache emptied before each run."""

    def __init__(self, seconds):
        import torch

        self.torch, self.seconds = torch, seconds
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.eraser = torch.empty(max(4 * cache, 64 << 20), dtype=torch.int8, device="cuda")

    def runs(self, run, number):
        marks = []
        for _ in range(number):
            self.eraser.zero_()
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            marks.append((begin, end))
        self.torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in marks]

    def median(self, run):
        first = statistics.median(self.runs(run, 3))
        number = min(1000, max(10, int(self.seconds * 1e3 / max(first, 0.05))))
        return statistics.median(self.runs(run, number))

    def best_way(self, run):
        """The smaller of the time of a run and of its replay as a graph, which does not wait for Python."""
        eager = self.median(run)
        try:
            stream = self.torch.cuda.Stream()
            stream.wait_stream(self.torch.cuda.current_stream())
            with self.torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            self.torch.cuda.current_stream().wait_stream(stream)
            graph = self.torch.cuda.CUDAGraph()
            with self.torch.cuda.graph(graph):
                run()
            replayed = self.median(graph.replay)
        except Exception as error:  # noqa: BLE001: whatever a peer does not allow leaves the eager time
            print(f"no graph: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr, flush=True)
            return eager, "eager"
        return min((eager, "eager"), (replayed, "graph"))

    def copy(self):
        """Bytes a second, read and written."""
        one = self.torch.empty(1 << 30, dtype=self.torch.int8, device="cuda")
        two = self.torch.empty_like(one)
        return 2 * one.numel() / (statistics.median(self.runs(lambda: two.copy_(one), 20)) * 1e-3)


def prepared(name, shape, gradients):
    """A run of a mechanism at a shape, and the bytes that it has to move."""
    import torch

    torch.manual_seed(0)
    given, call = MECHANISMS[name](*map(int, shape.split("x")))
    size = lambda all_of: sum(it.numel() * it.element_size() for it in all_of)  # noqa: E731
    leaves = [it.requires_grad_(gradients) for it in given.values()]
    with torch.set_grad_enabled(gradients):
        out = call(given)
    forward = size(leaves) + size([out])
    if not gradients:
        def run():
            with torch.no_grad():
                return call(given)

        return run, forward
    cotangent = torch.randn_like(out)
    # Inputs and the cotangent read, gradients written.
    backward = 2 * size(leaves) + size([out])
    del out
    return lambda: torch.autograd.grad(call(given), leaves, cotangent, allow_unused=True), forward + backward


def measure(name, options):
    """The whole life of a child: compile, say so, wait for the turn, tune again alone, time."""
    tuners = limit_tuning(options.cap)
    import torch

    # Dimensions that kernels are tuned by are the same here; compiling takes long, running does not.
    heads = sorted({shape.split("x")[2] for shape in options.shapes})
    for number in heads:
        for gradients in (False, True):
            prepared(name, f"1x512x{number}", gradients)[0]()
    torch.cuda.synchronize()
    print("compiled", flush=True)
    if not sys.stdin.readline():
        return
    # What was chosen beside others that were running may be wrong.
    for tuner in tuners:
        tuner.cache.clear()
    timer = Timer(options.seconds)
    bandwidth = timer.copy()
    for shape in options.shapes:
        for direction, gradients in (("forward", False), ("forward+backward", True)):
            try:
                run, moved = prepared(name, shape, gradients)
                for _ in range(3):
                    run()
                milliseconds, how = timer.best_way(run)
            except Exception as error:  # noqa: BLE001: one shape that fails leaves the others
                print(f"{name} {shape} {direction}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
                continue
            finally:
                run = None
                torch.cuda.empty_cache()
            floor = moved / bandwidth * 1e3
            row = {
                "by": "fla", "mechanism": name, "shape": shape, "direction": direction, "milliseconds": milliseconds, "how": how,
                "floor_milliseconds": floor, "times_floor": milliseconds / floor, "floor_bytes": moved, "copy": bandwidth,
                "cap": options.cap,
            }
            print(json.dumps(row), flush=True)


# ---------------------------------------------------------------- all of them

TOOLKITS = "/usr/local/cuda/bin/ptxas"


def has_assembler():
    """Whether the Triton that would be imported brings its assembler."""
    found = importlib.util.find_spec("triton")
    places = (found and found.submodule_search_locations) or []
    return any(os.path.isfile(os.path.join(place, "backends/nvidia/bin/ptxas")) for place in places)


def main():
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=words, default=list(MECHANISMS), metavar="NAMES", help="mechanisms, with commas")
    parser.add_argument("--shapes", type=words, default=SHAPES, help="BATCHxLENGTHxHEADS, with commas")
    parser.add_argument("--cap", type=int, default=5, help="configurations that a kernel is tuned over; 0 for all")
    parser.add_argument("--seconds", type=float, default=0.2, help="to measure each direction for")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.only if name not in MECHANISMS]
    if unknown:
        sys.exit(f"no mechanism {', '.join(unknown)}; there are {', '.join(MECHANISMS)}")
    if options.child:
        return measure(options.child, options)
    children = {}
    folder = tempfile.mkdtemp(prefix="peers-")
    for name in options.only:
        environment = {**os.environ, "TRITON_CACHE_DIR": f"{folder}/{name}", "FLA_CACHE_RESULTS": "0"}
        # A toolkit's assembler serves a Triton that was packed without one.
        if not has_assembler() and os.path.isfile(TOOLKITS):
            environment.setdefault("TRITON_PTXAS_PATH", TOOLKITS)
        command = [sys.executable, os.path.abspath(__file__), "--child", name, "--cap", str(options.cap),
                   "--seconds", str(options.seconds), "--shapes", ",".join(options.shapes)]
        children[name] = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(options.budget, lambda: [child.kill() for child in children.values()])
    late.daemon = True
    late.start()
    failed = []
    # Nobody is timed before everybody has compiled.
    ready = []
    for name, child in children.items():
        has_compiled = any(line.strip() == "compiled" for line in iter(child.stdout.readline, ""))
        (ready if has_compiled else failed).append(name)
    for name in ready:
        child = children[name]
        try:
            child.stdin.write("begin\n")
            child.stdin.flush()
        except OSError:
            failed.append(name)
            continue
        for line in child.stdout:
            print(line, end="", flush=True)
        if child.wait() != 0:
            failed.append(name)
    late.cancel()
    for child in children.values():
        child.kill()
    if failed:
        print(f"nothing, or not everything, of {', '.join(failed)}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

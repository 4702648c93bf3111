"""Tests and measurements on a machine with a GPU, in named groups, each within a time of its own.

    python3 gpu.py correct speed --out results
    python3 gpu.py speed --only gated_delta_rule,kda --shapes 8x2048x16 --peers peers.jsonl
    python3 gpu.py random --budget 300

    correct   recorded tensors, `verify` of every example, the tests that want a GPU, random programs
    random    the random programs alone, in all the time there is
    speed     forward and forward+backward of every mechanism, as multiples of the floor: speed.jsonl, speed.md
    decode    one token of many sequences
    cold      the first call of a program, and the second
    memory    what a call takes beyond its tensors
    sanitize  compute-sanitizer over a few runs
    large     tensors of more than 2^31 elements
    long      sequences of 131072 tokens against the recurrent form in float32

It works from an unpacked bundle (`cargo xtask bundle`), and needs Python alone. The whole output of a group is in
GROUP.log in the folder of the results; what is printed last is a short table. The exit code is 1 if anything failed.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "mechanisms"
BUDGETS = {
    "correct": 480, "random": 240, "speed": 480, "decode": 90, "cold": 120, "memory": 120, "sanitize": 240, "large": 240, "long": 240,
}
SHAPES = ["8x2048x16", "2x16384x16", "1x32768x8", "1x131072x8"]
SIZES = {"K": 128, "V": 128, "N": 16, "R": 2}
DIRECTIONS = ["forward", "forward+backward"]


def binary(name):
    """A program of the bundle, or of the repository where it was built."""
    for place in (ROOT / "bin" / name, ROOT / "target" / "release" / name):
        if place.is_file():
            return str(place)
    sys.exit(f"{name} is neither in {ROOT}/bin nor built: unpack a bundle, or build with --release")


def axes(program):
    source = "\n".join(line.split("//")[0] for line in (EXAMPLES / f"{program}.cw").read_text().splitlines())
    return [axis.strip() for line in re.findall(r"^\s*axis ([^\n]*)", source, re.M) for axis in line.split(",")]


def tensors(program):
    """Inputs and parameters of a program: name, whether it has one for every token, axes."""
    source = "\n".join(line.split("//")[0] for line in (EXAMPLES / f"{program}.cw").read_text().splitlines())
    found = []
    for kind, line in re.findall(r"^\s*(input|param) ([^\n]*)", source, re.M):
        for name, inner in re.findall(r"(\w+): \[([^\]]*)\]", re.sub(r"in [\[(][^\])]*[\])]", "", line)):
            found.append((name, kind == "input", [axis.strip() for axis in inner.split(",") if axis.strip()]))
    return found


def sizes(program, **other):
    known = {**SIZES, **other}
    return ",".join(f"{axis}={known[axis]}" for axis in axes(program))


def write_tensors(path, program, batch, length, heads, known):
    """Small numbers of one kind: right for nothing but to be computed with."""
    head, data = {}, bytearray()
    shapes = []
    for name, of_token, inner in tensors(program):
        inner = [known[axis] for axis in inner]
        shapes.append((name, [batch, length, heads, *inner] if of_token else [heads, *inner]))
    for name, shape in shapes:
        count = 1
        for extent in shape:
            count *= extent
        pattern = b"".join(struct.pack("<e", -0.01 * (1 + i % 7)) for i in range(7))
        begin = len(data)
        data += (pattern * (count // 7 + 1))[: 2 * count]
        head[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))


class Group:
    """One group: its log, its deadline, its rows."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.until = time.time() + (options.budget or BUDGETS[name])
        self.log = open(options.out / f"{name}.log", "a", buffering=1)
        self.rows, self.failed = [], 0

    def left(self):
        return self.until - time.time()

    def run(self, command, limit=600, **environment):
        """Runs a program in a group of its own: (exit code, what it printed, seconds). 124 if it was stopped."""
        limit = min(limit, self.left())
        if limit < 2:
            return 124, "no time was left", 0.0
        began = time.time()
        child = subprocess.Popen(
            command, cwd=ROOT, env={**self.options.environment, **environment}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        )
        try:
            out, err = child.communicate(timeout=limit)
            code = child.returncode
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            out, err = child.communicate()
            code, err = 124, err + f"\nstopped after {limit:.0f} s"
        seconds = time.time() - began
        changed = "".join(f"{key}={value} " for key, value in environment.items())
        self.log.write(f"\n$ {changed}{' '.join(map(str, command))}\n{out}{err}[{code}, {seconds:.1f} s]\n")
        return code, out + err, seconds

    def row(self, what, result, note=""):
        self.failed += result in ("FAILS", "late")
        self.rows.append((what, result, note))
        print(f"  {what}: {result} {note}", flush=True)

    def judge(self, what, code, said, seconds, note=None):
        """A row for a program that tells by its exit code how it went."""
        result = {0: "ok", 124: "late"}.get(code, "FAILS")
        if note is None:
            lines = [line for line in said.strip().splitlines() if line.strip()] or [""]
            note = lines[-1] if code == 0 else next((it for it in lines if it.startswith("error")), lines[-1])
        self.row(what, result, f"{seconds:.0f} s  {note[:150]}")

    def in_parallel(self, jobs, number):
        """Runs jobs side by side; each is a function without arguments."""
        with concurrent.futures.ThreadPoolExecutor(number) as pool:
            for job in concurrent.futures.as_completed([pool.submit(job) for job in jobs]):
                job.result()


def mechanisms(options):
    names = sorted(path.stem for path in EXAMPLES.glob("*.cw"))
    return [name for name in names if not options.only or name in options.only]


# ---------------------------------------------------------------- right results


def test(group, binary_name, arguments, what, limit=300, **environment):
    code, said, seconds = group.run([binary(binary_name), *arguments, "--nocapture"], limit, **environment)
    counts = re.findall(r"test result: .*", said)
    skipped = "skipped: " in said and "skipped: there is a GPU" not in said
    note = (counts[-1] if counts else said.strip()[-150:]) + (" (some were skipped)" if skipped else "")
    group.judge(what, code, said, seconds, note)
    if code != 0:
        for line in re.findall(r"^(?:test .* FAILED|seed \d+: .*|\w+ \w+ \w+ \S+: .* allowed .*)$", said, re.M)[:40]:
            print(f"    {line[:160]}", flush=True)
    return said


def correct(group):
    test(group, "tests-runtime", ["cuda::", "--skip", "driver_without_a_gpu"], "the runtime's tests", 120)
    # Recorded tensors first: they say most.
    test(group, "tests", ["cli::gpu::recorded"], "recorded tensors, f32, bf16, f16", 200)
    test(group, "tests", ["cli::gpu", "--skip", "recorded"], "the command line's tests", 150)

    def verify(name):
        def job():
            verify = [binary("chunkwise"), "verify", f"examples/mechanisms/{name}.cw", "--device", "cuda"]
            code, said, seconds = group.run([*verify, "--cases", str(group.options.cases)])
            note = "; ".join(re.findall(r"^.* fails: .*", said, re.M)) or None
            group.judge(f"verify {name}", code, said, seconds, note if code else "")
        return job

    group.in_parallel([verify(name) for name in mechanisms(group.options)], max(2, (os.cpu_count() or 2) // 2))
    if not group.options.only:
        random(group)


def random(group):
    seconds = max(10, int(group.left() - 30))
    environment = {"CHUNKWISE_SECONDS": str(seconds), "CHUNKWISE_PROGRAMS": str(group.options.programs)}
    said = test(group, "tests", ["random_programs_on_a_gpu"], f"{group.options.programs} random programs", seconds + 60, **environment)
    for line in re.findall(r"^\d+ programs, .*", said, re.M)[-1:]:
        print(f"    {line}", flush=True)


def sanitize(group):
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not pathlib.Path(tool).is_file():
        group.row("compute-sanitizer", "FAILS", "is not installed")
        return
    cases = [
        (name, known, length, dtype)
        for name in group.options.only or ["gated_delta_rule", "linear_attention", "kda", "mlstm", "gated_delta_product"]
        for known, length, dtype in [({"K": 64, "V": 64}, 150, "bf16"), ({"K": 20, "V": 17}, 37, "f32")]
    ]
    for name, other, length, dtype in cases:
        known = {**SIZES, **other, "N": 8}
        with tempfile.TemporaryDirectory() as folder:
            given = pathlib.Path(folder) / "in.safetensors"
            write_tensors(given, name, 2, length, 2, known)
            run = [binary("chunkwise"), "run", f"examples/mechanisms/{name}.cw", "--input", str(given), "--output",
                   f"{folder}/out", "--device", "cuda", "--dtype", dtype, "--backward", *group.options.more]
            # Once without, so that only kernels are watched, and not the compiler.
            group.run(run, 60)
            for check in group.options.tools:
                # Loading asks the driver for a parameter after the last, which is no error of ours.
                api = ["--report-api-errors", "no"] if check == "memcheck" else []
                code, said, seconds = group.run([tool, "--tool", check, *api, "--error-exitcode", "9", *run], 120)
                summary = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", said)
                group.judge(f"{check} {name} {dtype}", code, said, seconds, summary[-1] if summary else None)


def large(group):
    test(group, "tests", ["--ignored", "more_than_two_to_the_31"], "more than 2^31 elements", group.left())


def long(group):
    for name in mechanisms(group.options):
        verify = [binary("chunkwise"), "verify", f"examples/mechanisms/{name}.cw", "--device", "cuda", "--long", "131072"]
        code, said, seconds = group.run(verify)
        note = "; ".join(re.findall(r"^.* fails: .*", said, re.M)) or None
        group.judge(f"verify --long {name}", code, said, seconds, note if code else "")


# ---------------------------------------------------------------- speed


def bench_command(name, shape, seconds, *more):
    batch, length, heads = shape.split("x")
    return [binary("chunkwise"), "bench", f"examples/mechanisms/{name}.cw", "--device", "cuda", "--dtype", "bf16", "--json",
            "--batch", batch, "--length", length, "--heads", heads, "--size", sizes(name), "--seconds", str(seconds), *more]


def bench(group, name, shape, seconds, *more):
    code, said, _ = group.run(bench_command(name, shape, seconds, *more), 120)
    try:
        return json.loads(said[said.index("{"):]) if code == 0 else None
    except ValueError:
        return None


def compile_all(group, pairs, *more):
    """Compiles side by side what will be measured one after the other."""
    jobs = [lambda pair=pair: bench(group, *pair, 0.01, "--cache", *more) for pair in pairs]
    group.in_parallel(jobs, max(2, (os.cpu_count() or 2) // 2))


def figures(name, shape, said):
    for figure in said["figures"]:
        yield {
            "by": "chunkwise", "mechanism": name, "shape": shape, "direction": figure["direction"],
            "milliseconds": figure["gpu_seconds"] * 1e3, "floor_milliseconds": figure["floor_seconds"] * 1e3,
            "times_floor": figure["times_floor"], "launch_milliseconds": figure["launch_seconds"] * 1e3,
            "extra_bytes": figure["extra_bytes"], "floor_bytes": figure["floor_bytes"], "chunk": figure["chunk"],
            "schedule": figure["schedule"], "copy": said["copy_bytes_per_second"], "device": said["device"]["name"],
        }


def speed(group):
    options = group.options
    pairs = [(name, shape) for shape in options.shapes for name in mechanisms(options)]
    compile_all(group, pairs, *options.more)
    rows = []
    with open(options.out / "speed.jsonl", "a", buffering=1) as out:
        for name, shape in pairs:
            said = bench(group, name, shape, options.seconds, "--cache", *options.more)
            if said is None:
                group.row(f"{name} {shape}", "FAILS" if group.left() > 2 else "late", "see the log")
                continue
            for row in figures(name, shape, said):
                rows.append(row)
                out.write(json.dumps(row) + "\n")
    peers = [json.loads(line) for path in options.peers for line in open(path) if line.strip()]
    text = table(rows, peers, options.shapes)
    (options.out / "speed.md").write_text(text)
    print(text)


def table(rows, peers, shapes):
    """Milliseconds and multiples of the floor; with peers, theirs and how many times faster ours is."""
    def of(rows, mechanism, shape, direction):
        found = [row for row in rows if (row["mechanism"], row["shape"], row["direction"]) == (mechanism, shape, direction)]
        return min(found, key=lambda row: row["milliseconds"]) if found else None

    text = ["| mechanism | direction | " + " | ".join(shapes) + " |", "|---|---|" + "---|" * len(shapes)]
    for mechanism in sorted({row["mechanism"] for row in rows}):
        for direction in DIRECTIONS:
            cells = []
            for shape in shapes:
                ours, peer = of(rows, mechanism, shape, direction), of(peers, mechanism, shape, direction)
                if ours is None:
                    cells.append("—")
                    continue
                cell = f"{ours['milliseconds']:.3g} ms, {ours['times_floor']:.1f}×"
                if peer:
                    cell += f" ({peer['by']} {peer['milliseconds']:.3g} ms: {peer['milliseconds'] / ours['milliseconds']:.2f})"
                cells.append(cell)
            text.append(f"| `{mechanism}` | {direction} | " + " | ".join(cells) + " |")
    if peers:
        text += ["", "In parentheses a peer's time and how many times ours is faster."]
    return "\n".join(text) + "\n"


def decode(group):
    options = group.options
    shapes = ["64x1x16", "1x1x16"]
    pairs = [(name, shape) for shape in shapes for name in mechanisms(options)]
    compile_all(group, pairs, "--form", "recurrent", *options.more)
    text = ["| mechanism | " + " | ".join(shapes) + " |", "|---|" + "---|" * len(shapes)]
    cells = {name: [] for name in mechanisms(options)}
    with open(options.out / "decode.jsonl", "a", buffering=1) as out:
        for name, shape in pairs:
            said = bench(group, name, shape, 0.1, "--cache", "--form", "recurrent", *options.more)
            if said is None:
                group.row(f"{name} {shape}", "FAILS" if group.left() > 2 else "late", "see the log")
                cells[name].append("—")
                continue
            row = next(row for row in figures(name, shape, said) if row["direction"] == "forward")
            out.write(json.dumps({**row, "direction": "decode"}) + "\n")
            cells[name].append(f"{row['milliseconds'] * 1e3:.1f} µs, {row['times_floor']:.2f}×, launch {row['launch_milliseconds'] * 1e3:.1f} µs")
    text += [f"| `{name}` | " + " | ".join(cells[name]) + " |" for name in cells]
    (options.out / "decode.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def cold(group):
    """A whole process from the program to its results, with an empty cache and again with a full one."""
    text = ["| mechanism | forward, cold | warm | with backward, cold | warm | phases |", "|---|---|---|---|---|---|"]
    for name in mechanisms(group.options):
        with tempfile.TemporaryDirectory() as folder:
            given = pathlib.Path(folder) / "in.safetensors"
            write_tensors(given, name, 1, 128, 2, SIZES)
            times = []
            for part, more in enumerate([[], ["--backward"]]):
                run = [binary("chunkwise"), "run", f"examples/mechanisms/{name}.cw", "--input", str(given), "--output",
                       f"{folder}/out", "--device", "cuda", "--dtype", "bf16", *more, *group.options.more]
                for _ in range(2):
                    code, said, seconds = group.run(run, 60, CHUNKWISE_CACHE=f"{folder}/cache{part}")
                    times.append(f"{seconds:.2f} s" if code == 0 else "—")
                    if code != 0:
                        group.judge(f"{name} {' '.join(more)}", code, said, seconds)
            said = bench(group, name, "1x128x2", 0.01, *group.options.more) or {}
            phases = ", ".join(
                f"{it['direction']} {it['compile_seconds']:.2f} + {it['assemble_seconds']:.2f} + {it['load_seconds']:.2f}"
                for it in said.get("phases", [])
            )
            text.append(f"| `{name}` | " + " | ".join(times) + f" | {phases} |")
    (group.options.out / "cold.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


def memory(group):
    shapes = group.options.shapes[:1] + group.options.shapes[-1:]
    text = ["| mechanism | direction | " + " | ".join(shapes) + " |", "|---|---|" + "---|" * len(shapes)]
    pairs = [(name, shape) for shape in shapes for name in mechanisms(group.options)]
    compile_all(group, pairs, *group.options.more)
    for name in mechanisms(group.options):
        cells = {direction: [] for direction in DIRECTIONS}
        for shape in shapes:
            said = bench(group, name, shape, 0.01, "--cache", *group.options.more)
            rows = {row["direction"]: row for row in figures(name, shape, said)} if said else {}
            if not rows:
                group.row(f"{name} {shape}", "FAILS" if group.left() > 2 else "late", "see the log")
            for direction in DIRECTIONS:
                row = rows.get(direction)
                share = row and row["extra_bytes"] / row["floor_bytes"]
                cells[direction].append(f"{row['extra_bytes'] / 2**20:.0f} MiB, {share:.2f} of the tensors" if row else "—")
        text += [f"| `{name}` | {direction} | " + " | ".join(cells[direction]) + " |" for direction in DIRECTIONS]
    (group.options.out / "memory.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


GROUPS = {it.__name__: it for it in (correct, random, speed, decode, cold, memory, sanitize, large, long)}


def main():
    words = lambda text: [word for word in text.split(",") if word]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", choices=GROUPS, metavar="GROUP")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-results"), help="folder for logs and figures")
    parser.add_argument("--budget", type=float, help="seconds for each group, instead of its own")
    parser.add_argument("--only", type=words, default=[], metavar="NAMES", help="mechanisms, with commas")
    parser.add_argument("--shapes", type=words, default=SHAPES, help="BATCHxLENGTHxHEADS, with commas")
    parser.add_argument("--seconds", type=float, default=0.2, help="to measure each direction for")
    parser.add_argument("--peers", action="append", default=[], metavar="FILE", help="JSON lines of gpu_peers.py, to stand beside ours")
    parser.add_argument("--programs", type=int, default=300, help="random programs")
    parser.add_argument("--cases", type=int, default=6, help="cases of each `verify`")
    parser.add_argument("--tools", type=words, default=["memcheck"], help="of compute-sanitizer, with commas")
    parser.add_argument("--more", type=shlex.split, default=[], help="options for every chunkwise bench and run, as a shell has them")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    options.environment = {
        **os.environ, "CARGO_BIN_EXE_chunkwise": binary("chunkwise"), "CARGO_MANIFEST_DIR": str(ROOT), "RUST_BACKTRACE": "1",
        "CHUNKWISE_CACHE": os.environ.get("CHUNKWISE_CACHE", str(pathlib.Path(tempfile.gettempdir()) / "chunkwise-cache")),
    }
    if (ROOT / "fixtures").is_dir():
        options.environment.setdefault("CHUNKWISE_FIXTURES", str(ROOT / "fixtures"))
    done = []
    for name in options.groups:
        print(f"{name}:", flush=True)
        group, began = Group(name, options), time.time()
        GROUPS[name](group)
        done.append((name, group, time.time() - began))
    print()
    for name, group, seconds in done:
        print(f"{name}: {'FAILS' if group.failed else 'ok'} in {seconds:.0f} s")
        for what, result, note in group.rows:
            if result != "ok":
                print(f"    {what}: {result} {note}")
    sys.exit(1 if any(group.failed for _, group, _ in done) else 0)


if __name__ == "__main__":
    main()

"""Products of packed weights: our kernels against stock llama.cpp's, alone: python -m tests.bench.kernels [--help]

Both take turns in one process, so that other work on the machine hardly changes their ratio. Times are those of the
processor, divided by the number of threads, and medians. Up to eight columns, as of eight conversations, read new
weights all the time, more than a cache holds; many columns are of one matrix. Beside them, what a core can do at most:
multiply-adds of bytes with all operands in registers, and reading memory, mapped in small pages as a model's file is.

llama.cpp's threads, GNU's OpenMP, would ask for more work on the cores that ours need by then: all of it runs in a
child process whose GOMP_SPINCOUNT is 0, so that they sleep as soon as they have nothing to do, unless you set another.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.measure import machine
from tests.oracles.ggml_products import GgmlProducts
from tests.paths import ROOT
from tests.runtime.engine.kernels.product_library import Job
from tritgguf.runtime.engine.kernels import library

NATIVE = Path(__file__).parent / "native"
RESULTS = Path(__file__).parent / "results" / "kernels.json"
# number, values of a block, its bytes, where its scales are
TYPES = {
    "TQ2_0": (35, 256, 66, (64,)),
    "TQ1_0": (34, 256, 54, (52,)),
    "Q2_0": (42, 64, 18, (0,)),
    "Q2_K": (10, 256, 84, (80, 82)),
    "F16": (1, 1, 2, ()),
    "Q8_0": (8, 32, 34, (0,)),
    "Q6_K": (14, 256, 210, (208,)),
}
HEAD, HEADS = (2048, 32000), ("F16", "Q8_0", "Q6_K")  # an output layer, and its types
SHAPES = ((2048, 2048), (2048, 5632), (5632, 2048), (2560, 2560), (2560, 6912), (6912, 2560))  # inputs, rows
MODELS = {2048: "1.1B", 5632: "1.1B", 2560: "2B-4T", 6912: "2B-4T"}
INSTRUCTION_SETS = ("avx2", "avx-vnni", "avx512-vnni", "avx512-vbmi", "avx512-amx", "neon-dotprod", "neon-i8mm")
PEAK_OF = {"avx512-vbmi": "avx512-vnni"}  # the same multiply-adds
READ_BYTES = 160 << 20
FEW_COLUMNS = 8
STOCK_COLUMNS = {"Q2_0": 4}  # of many, where stock takes seconds for all of them; its time is proportional
ROUNDS = 5
PEAK_ROUNDS = 300_000
SPINS = "GOMP_SPINCOUNT"

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One product by one instruction set; `ratio` is how many times as fast as stock it is."""

    type: str
    instructions: str
    n_inputs: int
    n_rows: int
    n_columns: int
    n_threads: int
    gmacs: float  # 10^9 multiply-adds per second and thread
    gigabytes: float  # of weights per second and thread
    ratio: float
    of_peak: float | None


def random_weights(kind: str, n_inputs: int, n_rows: int, rng: np.random.Generator) -> Bytes:
    """Return rows, ternary where the type is; `mmap` keeps them in small pages, where numpy would ask for huge ones."""
    _, block, block_bytes, scales_at = TYPES[kind]
    n_bytes = n_rows * n_inputs // block * block_bytes
    pages = mmap.mmap(-1, n_bytes)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    blocks = np.frombuffer(pages, np.uint8).reshape(n_rows, -1, block_bytes)
    if kind == "F16":
        blocks.reshape(n_rows, -1).view("<f2")[...] = 0.02 * rng.standard_normal((n_rows, n_inputs), np.float32)
        return blocks.reshape(n_rows, -1)
    blocks[...] = rng.integers(0, 256, blocks.shape, np.uint8)
    if kind in ("TQ2_0", "Q2_0"):
        blocks &= ~((blocks & blocks >> 1 & 0x55) << 1)  # no code 3
    for place in scales_at:
        blocks[..., place : place + 2] = np.array([0.02], "<f2").view(np.uint8)
    return blocks.reshape(n_rows, -1)


class Ours:
    """Our products of some matrices with the same columns."""

    def __init__(self, team: ctypes.CDLL, kernels: ctypes.CDLL) -> None:
        self._run_products = team.run_products
        self._run = ctypes.cast(kernels.product_run, ctypes.c_void_p)
        self._kernels = kernels
        kernels.product_work_bytes.restype = ctypes.c_size_t
        kernels.product_work_bytes.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)

    def takes(self, instructions: str, kind: str, n_inputs: int) -> bool:
        """Return whether products of this type are ours with these instructions."""
        self._kernels.product_use(instructions.encode())
        return bool(self._kernels.product_supports(TYPES[kind][0], ctypes.c_int64(n_inputs)))

    def prepare(
        self, instructions: str, kind: str, matrices: Sequence[Bytes], activations: Floats, n_threads: int
    ) -> Callable[[], None]:
        """Return what computes them once."""
        self._kernels.product_use(instructions.encode())
        (n_columns, n_inputs), n_rows, number = activations.shape, len(matrices[0]), TYPES[kind][0]
        results = np.zeros((n_columns, n_rows), np.float32)
        work = np.zeros(self._kernels.product_work_bytes(number, n_inputs, n_columns, n_threads), np.uint8)
        jobs = (Job * len(matrices))()
        for job, weights in zip(jobs, matrices, strict=True):
            job.type, job.n_inputs, job.n_rows, job.n_columns = number, n_inputs, n_rows, n_columns
            job.weights, job.row_bytes = weights.ctypes.data, weights.strides[0]
            job.activations, job.activation_bytes = activations.ctypes.data, activations.strides[0]
            job.results, job.result_bytes, job.work = results.ctypes.data, results.strides[0], work.ctypes.data

        def compute(keep: tuple[Any, ...] = (results, work, matrices, activations)) -> None:
            self._kernels.product_use(instructions.encode())
            self._run_products(self._run, jobs, len(jobs), n_threads)

        return compute


def seconds(call: Callable[[], object]) -> float:
    """Processor time of all threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(
    ours: Ours,
    kind: str,
    shape: tuple[int, int],
    n_columns: int,
    n_threads: int,
    sets: Sequence[str],
    peaks: dict[str, float],
) -> Iterator[Row]:
    """Yield a row for each instruction set."""
    (n_inputs, n_rows), rng = shape, np.random.default_rng(1)
    one = random_weights(kind, n_inputs, n_rows, rng)
    n_matrices = max(1, READ_BYTES // one.nbytes) if n_columns <= FEW_COLUMNS else 1
    matrices = [one, *(random_weights(kind, n_inputs, n_rows, rng) for _ in range(n_matrices - 1))]
    activations = rng.standard_normal((n_columns, n_inputs), np.float32)
    n_stock = min(n_columns, STOCK_COLUMNS.get(kind, n_columns))
    stock = GgmlProducts(TYPES[kind][0], matrices, activations[:n_stock], ROUNDS + 1)
    taking = [name for name in sets if ours.takes(name, kind, n_inputs)]
    calls = {name: ours.prepare(name, kind, matrices, activations, n_threads) for name in taking}
    taken: dict[str, list[float]] = {name: [] for name in ("stock", *calls)}
    for _ in range(ROUNDS):
        taken["stock"].append(seconds(lambda: stock.compute(n_threads)) * n_columns / n_stock)
        for name, call in calls.items():
            taken[name].append(seconds(call))
    stock.close()
    macs = n_inputs * n_rows * n_columns * n_matrices
    for name, times in taken.items():
        median = statistics.median(times)
        gmacs = macs / median / 1e9
        peak = None if kind == "F16" else peaks.get(PEAK_OF.get(name, name))  # that of bytes
        ratio = statistics.median(theirs / own for theirs, own in zip(taken["stock"], times, strict=True))
        yield Row(
            kind, name, n_inputs, n_rows, n_columns, n_threads,
            round(gmacs, 1), round(one.nbytes * n_matrices / median / 1e9, 4), round(ratio, 2),
            round(gmacs / peak, 3) if peak else None,
        )  # fmt: skip


def limits(folder: Path, sets: Sequence[str]) -> tuple[dict[str, float], float]:
    """Return 10^9 multiply-adds per second of a core for each instruction set, and the GB/s that it reads."""
    native = build("processor_limits.cpp", folder)
    native.multiply_adds.restype = ctypes.c_double
    native.multiply_adds.argtypes = (ctypes.c_char_p, ctypes.c_int64)
    native.read_memory.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    peaks = {}
    for name in dict.fromkeys(PEAK_OF.get(name, name) for name in sets):
        if macs := native.multiply_adds(name.encode(), 1):
            call = lambda name=name: native.multiply_adds(name.encode(), PEAK_ROUNDS)  # noqa: E731
            peaks[name] = round(max(macs * PEAK_ROUNDS / seconds(call) for _ in range(ROUNDS)) / 1e9, 1)
    memory = random_weights("TQ2_0", 2048, READ_BYTES // 528, np.random.default_rng(0))
    times = [seconds(lambda: native.read_memory(memory.ctypes.data, memory.nbytes)) for _ in range(ROUNDS)]
    return peaks, round(memory.nbytes / statistics.median(times) / 1e9, 1)


def build(source: str, folder: Path) -> ctypes.CDLL:
    path = folder / f"{source}.so"
    headers = ROOT / "runtime" / "engine" / "kernels" / "native"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread", f"-I{headers}"]
    subprocess.run(["c++", *flags, NATIVE / source, "-o", path], check=True)
    return ctypes.CDLL(str(path))


def plot(rows: Sequence[Row], peaks: dict[str, float], read: float, path: Path) -> None:
    """Draw a roofline: multiply-adds per byte of weights against multiply-adds per second, of one thread."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    colors = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row.instructions for row in rows))}
    intensity = np.geomspace(0.4, 4000, 200)
    for name, peak in peaks.items():
        axes.loglog(intensity, np.minimum(peak, read * intensity), linewidth=1, color=colors[name])
        axes.annotate(f"{name}: {peak:.0f}", (50, peak), va="bottom", color=colors[name])
    axes.annotate(f"reads {read} GB/s", (1, read), rotation=38, va="bottom")
    for (name, color), (kind, marker) in (
        (pair, mark) for pair in colors.items() for mark in zip(TYPES, "osDv^<>", strict=True)
    ):
        shown = [row for row in rows if (row.instructions, row.type, row.n_threads) == (name, kind, 1)]
        if shown:
            x = [row.gmacs / row.gigabytes for row in shown]
            axes.plot(x, [row.gmacs for row in shown], marker, color=color, label=f"{kind}, {name}", alpha=0.8)
    axes.set(xlabel="multiply-adds per byte of weights", ylabel="10⁹ multiply-adds per second, one thread")
    axes.legend(fontsize="small", ncols=2, loc="lower right")
    figure.savefig(path, dpi=120)


def table(rows: Sequence[Row]) -> str:
    lines = ["| type | shape | columns | threads | by | GMAC/s | GB/s | of peak | to stock |", "|---" * 9 + "|"]
    for row in rows:
        peak = f"{row.of_peak:.0%}" if row.of_peak else ""
        shape = f"{row.n_inputs}×{row.n_rows} ({MODELS[row.n_inputs]})"
        cells = (
            row.type,
            shape,
            row.n_columns,
            row.n_threads,
            row.instructions,
            row.gmacs,
            row.gigabytes,
            peak,
            row.ratio,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON; the plot lies beside it")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--shapes", nargs="+", type=int, default=range(len(SHAPES)), help=f"indices into {SHAPES}")
    parser.add_argument("--columns", nargs="+", type=int, default=[1, 8, 512])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    arguments = parser.parse_args()
    if SPINS not in os.environ:  # it is read once, when OpenMP's library is loaded
        command = [sys.executable, "-m", "tests.bench.kernels", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env={**os.environ, SPINS: "0"}, check=False).returncode)
    kernels = library.load()
    sets = [name for name in INSTRUCTION_SETS if kernels.product_use(name.encode())]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        peaks, read = limits(Path(folder), sets)
        print(f"A core does {peaks} 10⁹ multiply-adds per second at most and reads {read} GB/s.", flush=True)
        ours = Ours(build("product_team.cpp", Path(folder)), kernels)
        for kind in arguments.types:
            for shape in (HEAD,) if kind in HEADS else (SHAPES[index] for index in arguments.shapes):
                for n_columns in arguments.columns:
                    for n_threads in arguments.threads:
                        new = list(compare(ours, kind, shape, n_columns, n_threads, sets, peaks))
                        print("\n".join(table(new).splitlines()[0 if not rows else 2 :]), flush=True)
                        rows += new
    found = {"machine": machine(), "peak_gmacs": peaks, "read_gigabytes": read, "rows": [asdict(row) for row in rows]}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    plot(rows, peaks, read, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

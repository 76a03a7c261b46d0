"""How long conversions take, against llama.cpp's two ways and `cp`: python -m tests.bench.conversion FOLDER

All commands take turns, so that what else the machine does meets them alike; a figure is the median of the runs, a
ratio the median of the ratios within each turn. Needs 20 GB of disk, and torch for llama.cpp's converter (the golden
extra); --no-peers leaves both out. What is printed is also kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import measure, peers
from tests.bench.shapes import SHAPES, write_checkpoint

SHAPE = "llama-1.1b"
LARGER = "llama-10gb"  # packed only
# Folder: shape and packing.
CHECKPOINTS = {
    "floats": (SHAPE, "floats"),
    "ternary": (SHAPE, "ternary"),
    "bitnet": (SHAPE, "bitnet"),
    "base3": (SHAPE, "base3"),
    "bitnet-5b": (LARGER, "bitnet"),
    "base3-5b": (LARGER, "base3"),
}
RESULTS = Path(__file__).parent / "results"
CONVERT = (sys.executable, "-m", "tritgguf", "convert")


@dataclass(frozen=True)
class Row:
    """A command, the checkpoint that it reads and what it is compared with; `out` is what one of ours writes."""

    name: str
    command: list[object]
    source: str = "floats"
    compared: tuple[str, ...] = ()
    out: Path | None = None


def our_rows(folder: Path) -> list[Row]:
    """Return our conversions: checkpoint, type, method."""
    rows = []
    for kind in ("tq2_0", "tq1_0"):
        peers_of_kind = (f"convert_hf_to_gguf {kind}", f"llama_model_quantize {kind}")
        for method in ("absmean", "mse"):
            rows.append(_ours(folder, "floats", kind, peers_of_kind, method))
        for source in ("ternary", "bitnet", "bitnet-5b"):
            rows.append(_ours(folder, source, kind, peers_of_kind if source == "bitnet" else ()))
    return [*rows, _ours(folder, "base3", "q2_0"), _ours(folder, "base3-5b", "q2_0")]


def _ours(folder: Path, source: str, kind: str, compared: tuple[str, ...] = (), method: str = "mse") -> Row:
    out = folder / "out.gguf"
    command = [*CONVERT, folder / source, out, "--type", kind, "--method", method]
    name = f"{source} {kind}" + (f" {method}" if source == "floats" else "")
    return Row(name, command, source, (*compared, f"cp {source}"), out)


def other_rows(folder: Path, with_peers: bool, torch_python: Path) -> list[Row]:
    """Return `cp` of each checkpoint, and llama.cpp's ways."""
    rows = [Row(f"cp {source}", ["cp", "-r", folder / source, folder / "copy"], source) for source in CHECKPOINTS]
    if not with_peers:
        return rows
    for kind in ("tq2_0", "tq1_0"):
        out = folder / "peer.gguf"
        rows.append(
            Row(f"convert_hf_to_gguf {kind}", peers.convert_command(torch_python, folder / "floats", out, kind))
        )
        command = peers.quantize_command(folder / "f16.gguf", out, kind, measure.machine()["cores"])
        rows.append(Row(f"llama_model_quantize {kind}", command))
    return rows


def prepare(folder: Path) -> None:
    """Write the checkpoints and the F16 file that llama.cpp's quantizer starts from; read all, so that it is cached."""
    for source, (shape, packing) in CHECKPOINTS.items():
        write_checkpoint(folder / source, SHAPES[shape], packing)
    if not (folder / "f16.gguf").exists():
        measure.run([*CONVERT, folder / "floats", folder / "f16.gguf", "--type", "f16"])
    for path in (folder / "f16.gguf", *folder.glob("*/model*.safetensors")):
        subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)


def run_all(rows: list[Row], folder: Path, n_runs: int) -> dict[str, list[measure.Run]]:
    """Run every command in turn, one round more than counted."""
    found: dict[str, list[measure.Run]] = {row.name: [] for row in rows}
    for number in range(n_runs + 1):
        for row in rows:
            for leftover in ("out.gguf", "peer.gguf"):
                (folder / leftover).unlink(missing_ok=True)
            shutil.rmtree(folder / "copy", ignore_errors=True)
            measure.settle()
            once = measure.run(row.command, row.out)
            if number:
                found[row.name].append(once)
            print(f"round {number}: {row.name}: {once.seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def summary(rows: list[Row], found: dict[str, list[measure.Run]]) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        shape = SHAPES[CHECKPOINTS[row.source][0]]
        n_weights = shape.n_linear_weights + 2 * shape.vocab * shape.hidden
        runs = found[row.name]
        seconds = statistics.median(once.seconds for once in runs)
        first_bytes = [once.first_byte_seconds for once in runs if once.first_byte_seconds is not None]
        ratios = {
            other: round(statistics.median(b.seconds / a.seconds for a, b in zip(runs, found[other], strict=True)), 2)
            for other in row.compared
            if other in found
        }
        lines.append(
            {
                "name": row.name,
                "seconds": round(seconds, 3),
                "weights_per_second": round(n_weights / seconds),
                "times_as_fast_as": ratios,
                "anonymous_mb": round(max(once.anonymous_mb for once in runs)),
                **({"first_byte_seconds": round(statistics.median(first_bytes), 3)} if first_bytes else {}),
                "runs": [once.as_json() for once in runs],
            }
        )
    return lines


def print_table(lines: list[dict[str, Any]]) -> None:
    print(f"{'':30} {'s':>6} {'first byte':>10} {'G weights/s':>12} {'MB':>5}  times as fast as")
    for line in lines:
        ratios = ", ".join(f"{name.split()[0]} {ratio:.2f}" for name, ratio in line["times_as_fast_as"].items())
        rate, first = line["weights_per_second"] / 1e9, line.get("first_byte_seconds", "")
        print(f"{line['name']:30} {line['seconds']:6.2f} {first:>10} {rate:12.2f} {line['anonymous_mb']:5}  {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--torch-python", type=Path, default=sys.executable, help="a Python that has torch")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    described = measure.machine()
    prepare(folder)
    rows = [*our_rows(folder), *other_rows(folder, not arguments.no_peers, arguments.torch_python)]
    rows += [Row(f"{words} --help".strip(), [*CONVERT[:-1], *words.split(), "--help"]) for words in ("", "convert")]
    lines = summary(rows, run_all(rows, folder, arguments.runs))
    print_table(lines)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": described, "shape": SHAPE, "rows": lines}, indent=1)
    (RESULTS / "conversion.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

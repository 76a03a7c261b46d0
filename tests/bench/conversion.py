"""How long conversions take, against llama.cpp's two ways and `cp`: python -m tests.bench.conversion FOLDER

All commands take turns, so that what else the machine does meets them alike; a figure is the median of the runs, a
ratio the median of the ratios within each turn. Needs 12 GB of disk, and torch for llama.cpp's converter (the golden
extra); --no-peers leaves both out. What is printed is also kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
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
RESULTS = Path(__file__).parent / "results"
CONVERT = (sys.executable, "-m", "tritgguf.runtime", "convert")


@dataclass(frozen=True)
class Row:
    """A command, what it reads and what it is compared with."""

    name: str
    command: list[object]
    source: str = "floats"
    compared: tuple[str, ...] = ()

    @property
    def out(self) -> Path | None:
        """The file that one of our conversions writes."""
        return next((part for part in self.command if isinstance(part, Path) and part.name == "out.gguf"), None)


def our_rows(folder: Path) -> list[Row]:
    """Return our conversions: packing, type, method."""
    rows = []
    for kind in ("tq2_0", "tq1_0"):
        others = (f"convert_hf_to_gguf {kind}", f"llama_model_quantize {kind}", "cp floats")
        for method in ("absmean", "mse"):
            arguments = ["--type", kind, "--method", method]
            rows.append(Row(f"bf16 {kind} {method}", ours(folder, "floats", arguments), "floats", others))
        rows.append(Row(f"ternary bf16 {kind}", ours(folder, "ternary", ["--type", kind]), "ternary", others[2:]))
        rows.append(Row(f"bitnet {kind}", ours(folder, "bitnet", ["--type", kind]), "bitnet", ("cp bitnet",)))
    rows.append(Row("base-3 q2_0", ours(folder, "base3", ["--type", "q2_0"]), "base3", ("cp base3",)))
    return rows


def ours(folder: Path, packing: str, arguments: list[str]) -> list[object]:
    return [*CONVERT, folder / packing, folder / "out.gguf", *arguments, "--force"]


def other_rows(folder: Path, with_peers: bool, torch_python: Path) -> list[Row]:
    """Return `cp` of each checkpoint, and llama.cpp's ways."""
    rows = [
        Row(f"cp {packing}", ["cp", "-r", folder / packing, folder / "copy"], packing)
        for packing in ("floats", "ternary", "bitnet", "base3")
    ]
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
    for packing in ("floats", "ternary", "bitnet", "base3"):
        write_checkpoint(folder / packing, SHAPES[SHAPE], packing)
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
            os.sync()  # or this run would pay for what was deleted before it
            once = measure.run(row.command, row.out)
            if number:
                found[row.name].append(once)
            print(f"round {number}: {row.name}: {once.seconds:.2f} s", file=sys.stderr, flush=True)
    return found


def summary(rows: list[Row], found: dict[str, list[measure.Run]]) -> list[dict[str, Any]]:
    n_weights = SHAPES[SHAPE].n_linear_weights + 2 * SHAPES[SHAPE].vocab * SHAPES[SHAPE].hidden
    lines = []
    for row in rows:
        runs = found[row.name]
        seconds = statistics.median(once.seconds for once in runs)
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
                "runs": [once.as_json() for once in runs],
            }
        )
    return lines


def print_table(lines: list[dict[str, Any]]) -> None:
    print(f"{'':34} {'s':>7} {'G weights/s':>12} {'MB':>5}  times as fast as")
    for line in lines:
        ratios = ", ".join(f"{name.split()[0]} {ratio:.2f}" for name, ratio in line["times_as_fast_as"].items())
        rate = line["weights_per_second"] / 1e9
        print(f"{line['name']:34} {line['seconds']:7.2f} {rate:12.2f} {line['anonymous_mb']:5}  {ratios}")


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
    lines = summary(rows, run_all(rows, folder, arguments.runs))
    print_table(lines)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": described, "shape": SHAPE, "rows": lines}, indent=1)
    (RESULTS / "conversion.json").write_text(text + "\n")


if __name__ == "__main__":
    main()

"""The uniform codec against `cp`: python -m tests.bench.uniform FOLDER [SHAPE ...] [--runs 3]

Writes a checkpoint of each shape, quantizes it by uniform-d1, -d2 and -d3 to fp16 floats, and converts each of these
folders to the types that lose least for its bits. In each turn `cp -r` of the checkpoint comes first, and then all of
ours once; a figure is the median of the turns, a ratio the median of the ratios to that turn's `cp`. The page cache is
warm. A turn of the 7B shape needs 14 GB of disk. What is printed is also kept as JSON; --delete removes what was made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench import measure
from tests.bench.conversion import CONVERT, RESULTS
from tests.bench.shapes import SHAPES, write_checkpoint

QUANTIZE = (sys.executable, "-m", "tritgguf", "quantize")
# Bits per weight for the scheme's 1, 2 or 3 trits. Rows of 896, as in qwen-0.5b, fit no type of fewer than 4.5 bits.
BITS = {"qwen-0.5b": {1: 5, 2: 5, 3: 7}, "mistral-7b-6": {1: 3, 2: 5, 3: 7}}


def commands(shape: str, folder: Path, digits: list[int]) -> Iterator[tuple[str, list[object], Path]]:
    """Yield what a turn consists of: a name, the command, and what it writes."""
    model, copy = folder / shape, folder / "copy"
    yield "cp", ["cp", "-r", model, copy], copy
    made, out = folder / "quantized", folder / "out.gguf"
    for n_digits in digits:
        yield f"quantize d{n_digits}", [*QUANTIZE, model, made, "--scheme", f"uniform-d{n_digits}"], made
        yield f"convert d{n_digits}", [*CONVERT, made, out, "--max-bits", BITS[shape][n_digits]], out


def turn(shape: str, folder: Path, digits: list[int]) -> dict[str, measure.Run]:
    """Return what each command took."""
    found = {}
    for name, command, out in commands(shape, folder, digits):
        remove(out)
        found[name] = measure.run(command, out)
        print(f"{shape} {name}: {found[name].seconds:.2f} s", flush=True)
        if not name.startswith("quantize"):  # that folder is converted next
            remove(out)
    return found


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def figures(turns: list[dict[str, measure.Run]]) -> dict[str, Any]:
    """Return the medians of each command, and the runs."""
    return {
        name: {
            "seconds": round(statistics.median(found[name].seconds for found in turns), 2),
            "times_cp": round(statistics.median(found[name].seconds / found["cp"].seconds for found in turns), 2),
            "anonymous_mb": round(max(found[name].anonymous_mb for found in turns)),
            "runs": [found[name].as_json() for found in turns],
        }
        for name in turns[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shapes", nargs="*", default=BITS)
    parser.add_argument("--digits", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--delete", action="store_true")
    arguments = parser.parse_args()
    described = measure.machine()
    RESULTS.mkdir(exist_ok=True)
    for shape in arguments.shapes:
        model = write_checkpoint(arguments.folder / shape, SHAPES[shape])
        n_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        found = figures([turn(shape, arguments.folder, arguments.digits) for _ in range(arguments.runs)])
        print("| | s | times `cp` | MB |\n|---|---|---|---|")
        for name, row in found.items():
            print(f"| `{name}` | {row['seconds']:.2f} | {row['times_cp']:.1f} | {row['anonymous_mb']} |")
        text = json.dumps(
            {"machine": described, "shape": shape, "gigabytes": round(n_bytes / 1e9, 2), "commands": found}, indent=1
        )
        (RESULTS / f"uniform-{shape}.json").write_text(text + "\n")
        remove(arguments.folder / "quantized")
        if arguments.delete:
            remove(model)


if __name__ == "__main__":
    main()

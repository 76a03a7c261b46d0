"""Qwen2.5-Coder-14B's shapes: python -m tests.bench.large FOLDER [--shape qwen-14b] [--packing floats]

Writes the checkpoint. As floats (29.5 GB of bf16; needs 37 GB of disk): `cat` of all shards and a conversion to TQ2_0
in turn, each with the files dropped from the system's cache before. Packed: `cp` and an exact conversion in turn, page
cache warm. Compares the file's size with that of --dry-run, made from the weights, and of floats from config.json
alone. Keeps the figures as JSON. The checkpoint stays there unless --delete.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path

from tests.bench import measure
from tests.bench.conversion import CONVERT, RESULTS
from tests.bench.shapes import SHAPES, write_checkpoint

TYPES = {"floats": "tq2_0", "bitnet": "tq2_0", "base3": "q2_0"}


def planned_bytes(folder: Path, kind: str = "tq2_0") -> int:
    """Return the file's size that --dry-run tells."""
    command = [*CONVERT, folder, "--type", kind, "--dry-run", "--json"]
    printed = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout
    return int(json.loads(printed)["file_bytes"])


def planned_without_weights(folder: Path, scratch: Path) -> int:
    scratch.mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        if "safetensors" not in path.name:
            shutil.copy(path, scratch)
    return planned_bytes(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="qwen-14b", choices=SHAPES)
    parser.add_argument("--packing", default="floats", choices=TYPES)
    parser.add_argument("--method", default="absmean")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--delete", action="store_true")
    arguments = parser.parse_args()
    described = measure.machine()
    name = arguments.shape + (f"-{arguments.packing}" if arguments.packing != "floats" else "")
    model = write_checkpoint(arguments.folder / name, SHAPES[arguments.shape], arguments.packing)
    files, out, copy = sorted(model.glob("*.safetensors")), arguments.folder / "out.gguf", arguments.folder / "copy"
    n_bytes = sum(path.stat().st_size for path in files)
    cold, kind = arguments.packing == "floats", TYPES[arguments.packing]
    other = ("cat", ["sh", "-c", 'cat "$@" > /dev/null', "cat", *files]) if cold else ("cp", ["cp", "-r", model, copy])
    commands = dict([other, ("convert", [*CONVERT, model, out, "--type", kind, "--method", arguments.method])])
    found: dict[str, list[measure.Run]] = {key: [] for key in commands}
    for number in range(arguments.runs + 1):
        for key, command in commands.items():
            out.unlink(missing_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
            if cold:
                measure.drop_from_cache(files)
            else:
                measure.settle(n_bytes + (1 << 30))
            once = measure.run(command, out if key == "convert" else None)
            if number:
                found[key].append(once)
            print(key, once, flush=True)
    figures = {
        "shape": arguments.shape,
        "packing": arguments.packing,
        "method": arguments.method,
        "gigabytes": round(n_bytes / 1e9, 2),
        "file_bytes": out.stat().st_size,
        "planned_bytes": planned_bytes(model, kind),
        **(
            {"planned_bytes_without_weights": planned_without_weights(model, arguments.folder / "empty")}
            if cold
            else {}
        ),
        **{f"{key}_seconds": round(statistics.median(once.seconds for once in runs), 2) for key, runs in found.items()},
        f"times_{other[0]}": round(
            statistics.median(a.seconds / b.seconds for a, b in zip(found["convert"], found[other[0]], strict=True)), 2
        ),
        "convert_anonymous_mb": round(max(once.anonymous_mb for once in found["convert"])),
        "runs": {key: [once.as_json() for once in runs] for key, runs in found.items()},
    }
    print(json.dumps({key: value for key, value in figures.items() if key != "runs"}, indent=1))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": described, **figures}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    if arguments.delete:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()

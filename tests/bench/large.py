"""Qwen2.5-Coder-14B's shapes from a cold disk: python -m tests.bench.large FOLDER [--shape qwen-14b]

Writes the checkpoint (29.5 GB of bf16), then in turn: `cat` of all shards and a conversion to TQ2_0, each with the
files dropped from the system's cache before. Compares the file's size with that of --dry-run, made from config.json
alone and from the weights. Keeps the figures as JSON. Needs 37 GB of disk; the checkpoint stays there unless --delete.
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


def planned_bytes(folder: Path) -> int:
    """Return the file's size that --dry-run tells."""
    command = [*CONVERT, folder, "--type", "tq2_0", "--dry-run", "--json"]
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
    parser.add_argument("--method", default="absmean")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--delete", action="store_true")
    arguments = parser.parse_args()
    described = measure.machine()
    model = write_checkpoint(arguments.folder / arguments.shape, SHAPES[arguments.shape])
    files, out = sorted(model.glob("*.safetensors")), arguments.folder / "out.gguf"
    commands = {
        "cat": ["sh", "-c", 'cat "$@" > /dev/null', "cat", *files],
        "convert": [*CONVERT, model, out, "--type", "tq2_0", "--method", arguments.method],
    }
    found: dict[str, list[measure.Run]] = {key: [] for key in commands}
    for _ in range(arguments.runs):
        for key, command in commands.items():
            out.unlink(missing_ok=True)
            measure.drop_from_cache(files)
            found[key].append(measure.run(command))
            print(key, found[key][-1], flush=True)
    figures = {
        "shape": arguments.shape,
        "method": arguments.method,
        "gigabytes": round(sum(path.stat().st_size for path in files) / 1e9, 2),
        "file_bytes": out.stat().st_size,
        "planned_bytes": planned_bytes(model),
        "planned_bytes_without_weights": planned_without_weights(model, arguments.folder / "empty"),
        "cat_seconds": round(statistics.median(once.seconds for once in found["cat"]), 2),
        "convert_seconds": round(statistics.median(once.seconds for once in found["convert"]), 2),
        "convert_anonymous_mb": round(max(once.anonymous_mb for once in found["convert"])),
        "runs": {key: [once.as_json() for once in runs] for key, runs in found.items()},
    }
    print(json.dumps({key: value for key, value in figures.items() if key != "runs"}, indent=1))
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": described, **figures}, indent=1)
    (RESULTS / f"{arguments.shape}.json").write_text(text + "\n")
    if arguments.delete:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()

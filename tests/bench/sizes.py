"""Time against size, from 0.1 to 10 GB: python -m tests.bench.sizes FOLDER

Each checkpoint is written, converted five times with `absmean` and `mse`, copied as often with `cp`, and deleted. What
is measured is kept as JSON and drawn into docs/conversion-time.png (the bench extra). Needs 23 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

from tests.bench import measure
from tests.bench.conversion import CONVERT, RESULTS
from tests.bench.shapes import SHAPES, write_checkpoint

PLOT = Path(__file__).parents[2] / "docs" / "conversion-time.png"
NAMES = ("llama-0.1gb", "llama-0.5gb", "llama-1gb", "llama-1.1b", "llama-3gb", "llama-5gb", "llama-10gb")


def measure_one(name: str, folder: Path, n_runs: int) -> dict[str, Any]:
    """Return the size and the runs of one checkpoint."""
    model, out, copy = write_checkpoint(folder / name, SHAPES[name]), folder / "out.gguf", folder / "copy"
    files = sorted(model.glob("*.safetensors"))
    commands = {
        method: [*CONVERT, model, out, "--type", "tq2_0", "--method", method, "--force"]
        for method in ("absmean", "mse")
    }
    commands["cp"] = ["cp", "-r", model, copy]
    found: dict[str, list[measure.Run]] = {key: [] for key in commands}
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    for number in range(n_runs + 1):
        for key, command in commands.items():
            out.unlink(missing_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
            measure.settle()
            once = measure.run(command, out)
            if number:
                found[key].append(once)
    gigabytes = sum(path.stat().st_size for path in files) / 1e9
    shutil.rmtree(folder)
    return {
        "name": name,
        "gigabytes": round(gigabytes, 3),
        **{f"{key}_seconds": round(statistics.median(o.seconds for o in runs), 3) for key, runs in found.items()},
        **{
            f"{key}_anonymous_mb": round(max(o.anonymous_mb for o in runs))
            for key, runs in found.items()
            if key != "cp"
        },
        "runs": {key: [once.as_json() for once in runs] for key, runs in found.items()},
    }


def draw(points: list[dict[str, Any]], described: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), dpi=130)
    sizes = [point["gigabytes"] for point in points]
    for key, label, style in (("mse", "mse", "s-"), ("absmean", "absmean", "o-"), ("cp", "cp", "x--")):
        axes.plot(sizes, [point[f"{key}_seconds"] for point in points], style, label=label)
    axes.set(xlabel="checkpoint, GB of bf16", ylabel="seconds", title="bf16 to TQ2_0", xlim=0, ylim=0)
    axes.grid(alpha=0.3)
    axes.legend(title=f"{described['cores']} cores, page cache warm")
    figure.tight_layout()
    figure.savefig(PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--largest", type=float, default=10, help="leave out larger ones, in GB")
    arguments = parser.parse_args()
    described = measure.machine()
    points = []
    for name in NAMES:
        if float(name.removeprefix("llama-").removesuffix("gb").replace("1.1b", "2.2")) <= arguments.largest:
            points.append(measure_one(name, arguments.folder, arguments.runs))
            print({key: value for key, value in points[-1].items() if key != "runs"}, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sizes.json").write_text(json.dumps({"machine": described, "points": points}, indent=1) + "\n")
    draw(points, described)


if __name__ == "__main__":
    main()

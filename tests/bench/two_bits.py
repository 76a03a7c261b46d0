"""What two bits leave of a model: files of one model against an F16 file, as a table, JSON and a plot.

python -m tests.bench.two_bits BASE.gguf FILE.gguf ... --text NAME=FILE ... [--chunks 8] [--json FILE] [--plot FILE.png]

Each file is a row, named by its file's name; those of llama-quantize begin with "llama-". What the JSON file holds
already isn't measured again, so a stopped run goes on, and rows of several runs come together. The base's logits lie
beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tritgguf.runtime.measure.evaluation import evaluate

PEER = "llama-"
Rows = dict[str, dict[str, Any]]


def measured(base: Path, files: list[Path], texts: dict[str, Path], chunks: int, threads: int, kept: Path) -> Rows:
    """Return the figures by row and text, and keep them in a JSON file after each text."""
    rows: Rows = json.loads(kept.read_text()) if kept.exists() else {}
    for name, text in texts.items():
        logits = kept.with_name(f"{base.stem}-{name}-{chunks}.kld")  # the base's, computed once
        for file in files:
            row = rows.setdefault(file.stem, {"texts": {}})
            if row["texts"].get(name, {}).get("chunks") == chunks:
                continue
            against = None if logits.exists() else base
            options: dict[str, Any] = {"against": against, "base_logits": logits, "text": text}
            figures = evaluate([file], **options, n_chunks=chunks, threads=threads).files[0].as_json()
            row |= {key: figures.pop(key) for key in ("file_bytes", "bits_per_weight", "linear_bits_per_weight")}
            row["texts"][name] = {key: value for key, value in figures.items() if key != "path"}
            kept.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def table(rows: Rows, texts: list[str]) -> str:
    """Return a Markdown table, the smallest file first."""
    head = ["file", "MB", "bits per linear weight"]
    for text in texts:
        head += [f"perplexity, {text}", f"KLD, {text}", f"same top-1, {text}"]
    lines = [head, ["---"] * len(head)]
    for name, row in sorted(rows.items(), key=lambda one: one[1]["file_bytes"]):
        cells = [name, f"{row['file_bytes'] / 1e6:.0f}", f"{row['linear_bits_per_weight']:.2f}"]
        for text in texts:
            found = row["texts"][text]
            cells += [f"{found['ppl']:.4g}", f"{found['kld_mean']:.3g} ± {found['kld_error']:.1g}"]
            cells.append(f"{100 * found['same_top1']:.1f} %")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(rows: Rows, text: str, path: Path) -> None:
    """Draw KL divergence against the size of the file; needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for peers, colour, label in ((False, "tab:blue", "tritgguf"), (True, "tab:orange", "llama-quantize")):
        found = {name: row for name, row in rows.items() if name.startswith(PEER) == peers}
        sizes = [row["file_bytes"] / 1e6 for row in found.values()]
        divergences = [row["texts"][text]["kld_mean"] for row in found.values()]
        axes.scatter(sizes, divergences, color=colour, label=label)
        for name, size, divergence in zip(found, sizes, divergences, strict=True):
            axes.annotate(name.removeprefix(PEER), (size, divergence), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="size of the file, MB", ylabel=f"KL divergence from F16, {text}", yscale="log")
    axes.margins(x=0.15)  # room for the names
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("two-bits.json"))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    texts = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.text)}
    rows = measured(arguments.base, arguments.files, texts, arguments.chunks, arguments.threads, arguments.json)
    print(table(rows, list(texts)))
    if arguments.plot:
        plot(rows, next(iter(texts)), arguments.plot)


if __name__ == "__main__":
    main()

"""What `convert --budget` brings: files of one type against files of as many bytes with chosen types, by `eval`.

`python -m tests.bench.budget_quality MODEL WORK --text TEXT` measures once, which takes long, keeps that in
WORK/measured.json, makes the files in the folder WORK, those that aren't there yet, and prints a table; `--json FILE`
keeps the figures. --calibration, --imatrix and --chunks are for the measurement, --text and --eval-chunks for the
figures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tritgguf.converter import convert
from tritgguf.converter.planning.allocation import Option
from tritgguf.converter.planning.request import Request
from tritgguf.runtime.cli.native_library import prepare_native_library
from tritgguf.runtime.engine.kernels.install import fast_types
from tritgguf.runtime.measure import budget
from tritgguf.runtime.measure.evaluation import evaluate

LINEAR, EMBEDDINGS = r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight", r"^(token_embd|output)\.weight"
# A file's name and its types; each has a partner of as many bytes.
UNIFORM = {
    "q4_0": (f"{LINEAR}=q4_0", f"{EMBEDDINGS}=q4_0"),
    "q4_0-down-q4_k": (r"ffn_down\.weight=q4_k", f"{LINEAR}=q4_0", f"{EMBEDDINGS}=q4_0"),
    "q4_0-embeddings-q8_0": (f"{LINEAR}=q4_0", f"{EMBEDDINGS}=q8_0"),
    "q2_0-embeddings-f16": (f"{LINEAR}=q2_0", f"{EMBEDDINGS}=f16"),
    "q2_0-embeddings-q4_0": (f"{LINEAR}=q2_0", f"{EMBEDDINGS}=q4_0"),
    "q8_0": (f"{LINEAR}=q8_0", f"{EMBEDDINGS}=q8_0"),
}
FIGURES = ("file_bytes", "bits_per_weight", "ppl", "kld_mean", "kld_error", "same_top1")


def measured(choosing: budget.Choosing, arguments: argparse.Namespace) -> budget.Measured:
    """Measure, or read what was measured before."""
    kept = arguments.work / "measured.json"
    if not kept.exists():
        with budget.opened_trials(choosing, arguments.work, None) as trials:
            found = budget.measure(choosing, trials, arguments.calibration, arguments.chunks, progress=told)
        kept.write_text(json.dumps([found.options, found.n_trials, found.n_tokens]))
    options, n_trials, n_tokens = json.loads(kept.read_text())
    return budget.Measured([[Option(*option) for option in some] for some in options], n_trials, n_tokens)


def told(stage: str, done: int, total: int) -> None:
    print(f"{stage}: {done} of {total} tokens", end="\r", flush=True)


def made(arguments: argparse.Namespace) -> dict[str, tuple[Path, float | None]]:
    """Make what is missing; return the files by their rows' names, with the predicted KL divergence."""
    work, imatrix = arguments.work, arguments.imatrix
    choices: Any = {"imatrix": imatrix, "fast_here": fast_types()}
    request = Request.named("f16", arguments.method, **choices)
    choosing = budget.prepare(arguments.model, request, "16.5bpw", lora=None, threads=arguments.threads)
    known = measured(choosing, arguments)
    files: dict[str, tuple[Path, float | None]] = {}
    for name in arguments.uniform:
        weighs = imatrix if any(text.endswith("=q2_0") for text in UNIFORM[name]) else None
        file, partner = work / f"{name}.gguf", work / f"{name}-budget.gguf"
        if not file.exists():
            convert(
                arguments.model,
                file,
                "f16",
                arguments.method,
                tensor_type=UNIFORM[name],
                check=False,
                **{**choices, "imatrix": weighs},
            )
        chosen = budget.solve(replace(choosing, text=f"{file.stat().st_size}", n_bytes=file.stat().st_size), known)
        if not partner.exists():
            choices_here = {**choices, "imatrix": imatrix if chosen.weighs else None}
            types = chosen.tensor_types
            convert(arguments.model, partner, "f16", arguments.method, tensor_type=types, check=False, **choices_here)
        print(name, *chosen.lines, sep="\n  ")
        files |= {name: (file, None), f"{name}, --budget": (partner, chosen.predicted)}
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--eval-chunks", type=int, default=8)
    parser.add_argument("--calibration", type=Path, nargs="*", default=[])
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--method", default="four_levels")
    parser.add_argument("--uniform", nargs="*", default=list(UNIFORM), choices=list(UNIFORM))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True)
    prepare_native_library()
    base = arguments.work / "f16.gguf"
    if not base.exists():
        convert(arguments.model, base, "f16", embedding_type="f16", check=False)
    files = made(arguments)
    paths = [path for path, _ in files.values()]
    options = {"text": arguments.text, "n_chunks": arguments.eval_chunks, "threads": arguments.threads}
    found = evaluate(paths, against=base, **options).files
    rows = {}
    for (name, (_, predicted)), file in zip(files.items(), found, strict=True):
        rows[name] = {key: file.as_json()[key] for key in FIGURES} | {"predicted_kld": predicted}
        shown = "" if predicted is None else f" predicted {predicted:.3g}"
        row = rows[name]
        print(
            f"{name:32} {row['file_bytes'] / 1e6:8.2f} MB {row['bits_per_weight']:6.2f} bits  ppl {row['ppl']:10.4g}  "
            f"KLD {row['kld_mean']:8.4f} ± {row['kld_error']:.4f} {100 * row['same_top1']:5.1f} %{shown}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

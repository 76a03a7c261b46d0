"""The options of `tritgguf convert` alone; those that other commands have too are in options.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritgguf.converter.core.registry import names
from tritgguf.converter.planning.calibration import GPTQ, N_CHUNKS, STEPS
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.runtime.cli import options

_TYPES = names("tritgguf.converter.quant.codecs")
_METHODS = [*names("tritgguf.converter.quant.methods"), GPTQ]
TYPES, METHODS = ", ".join(_TYPES), ", ".join(_METHODS)
PANEL = f"Options of --method {GPTQ}, and text for --budget"

OutPath = Annotated[Path | None, typer.Argument(help="GGUF file to write (not needed with --dry-run).")]
TypeName = Annotated[
    str,
    typer.Option(
        help=f"Tensor type for linear layers: auto (an exact one, see --smallest) or {TYPES}.",
        autocompletion=options.completing(["auto", *_TYPES]),
    ),
]
Target = Annotated[
    str,
    typer.Option(
        "--for",
        help=f"Where the file will run: {', '.join(TARGETS)}.",
        autocompletion=options.completing(TARGETS),
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        help=f"How to quantize linear layers that aren't on a type's levels: {METHODS}. {GPTQ} loses least and takes "
        "long: it chooses codes for what the model computes on text; it needs the extra ptq.",
        autocompletion=options.completing(_METHODS),
    ),
]
EmbeddingType = Annotated[
    str | None,
    typer.Option(
        help="Tensor type for token embeddings, or auto: the smallest exact one if they are ternary, else f16 "
        "(default: auto with --type auto; f16, or their type in a GGUF source, with another --type)."
    ),
]
OutputType = Annotated[str | None, typer.Option(help="Tensor type for a separate output layer (as --embedding-type).")]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGEX=TYPE",
        help="Tensor type for tensors in whose GGUF name the regular expression is found, e.g. attn_v=q8_0; may be "
        "repeated, the first match wins.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Choose a type for every matrix so that the file loses least within this size: bits per weight of the "
        "whole file, e.g. 2.3bpw, or bytes, e.g. 1.2GB. It measures what each one costs, which takes a while; needs "
        "the weights, also with --dry-run.",
    ),
]
MaxBits = Annotated[
    float | None,
    typer.Option(
        help="With --type auto: if no ternary type is exact, use the most exact type up to this many bits per weight."
    ),
]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare the file's token ids with those of the source's tokenizer.")
]
Judge = Annotated[
    bool,
    typer.Option(
        "--verdict/--no-verdict",
        envvar="TRITGGUF_VERDICT",
        help="After a conversion with loss, say how far the file's predictions are from the source's.",
    ),
]
Card = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Also write a model card, such as README.md, with the verdict, to share the file with."
    ),
]
CalibrationText = Annotated[
    list[str] | None,
    typer.Option(
        "--calibration",
        metavar="FILE|DATASET",
        rich_help_panel=PANEL,
        help=f"With --method {GPTQ} or --budget: text, .jsonl, .json or .parquet with a text or messages in each "
        "entry, or a dataset on Hugging Face, datasets/org/name; may be repeated (default: a mixed text that comes "
        "with the package).",
    ),
]
CalibrationChunks = Annotated[
    int | None,
    typer.Option(
        help=f"Chunks of 512 tokens that {GPTQ} calibrates on (default: {N_CHUNKS}); with --budget and another method "
        "chunks of 128 tokens to measure on (default: 4).",
        rich_help_panel=PANEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Which chunks of the calibration text are taken (default: 0).", rich_help_panel=PANEL),
]
Without = Annotated[
    str | None,
    typer.Option(metavar="STEP,…", help=f"Leave out steps of {GPTQ}: {', '.join(STEPS)}.", rich_help_panel=PANEL),
]
Untie = Annotated[
    bool,
    typer.Option(
        "--untie",
        help=f"With --method {GPTQ}: give a model whose output layer is its embeddings one of its own, so that it can "
        "be rotated. The file is larger and loses less.",
        rich_help_panel=PANEL,
    ),
]
Tune = Annotated[
    int | None,
    typer.Option(
        metavar="STEPS",
        rich_help_panel=PANEL,
        help=f"After {GPTQ}, tune scales, norms and biases in so many steps on other chunks; made for a GPU, kept only "
        "where it helps on held-out text.",
    ),
]
MaxShardSize = Annotated[
    str | None, typer.Option(help="Split the file into parts of at most this many bytes, e.g. 500M or 4G.")
]

"""convert(): open the model, plan the file, check the tokenizer, write."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from gguf import GGML_QUANT_VERSION, Keys
from typing_extensions import Unpack

from tritgguf.converter.codec import codec_named
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.file_plan import FilePlan, TensorPlan, with_metadata
from tritgguf.converter.gguf_model import open_gguf_model
from tritgguf.converter.gguf_tensors import is_gguf
from tritgguf.converter.hf_model import open_hf_model
from tritgguf.converter.metadata import Metadata, uint32
from tritgguf.converter.model import Model
from tritgguf.converter.parallel import n_threads
from tritgguf.converter.parts import lay_out, part_paths
from tritgguf.converter.progress import Progress, counted
from tritgguf.converter.survey import Request, require_taken, survey
from tritgguf.converter.targets import SLOW_ON_X86, is_x86
from tritgguf.converter.tokenizer import TOKENIZER_JSON, RuntimeProcess, check_token_ids
from tritgguf.converter.writer import require_writable, whole_files, write_tensors


class Choices(TypedDict, total=False):
    """What `convert` and `plan` take beside type and method; see `convert`."""

    target: str
    fallback: str | None
    embedding_type: str | None
    output_type: str | None
    allow_lossy: bool
    max_bits: float | None
    max_shard_size: int | str | None


@dataclass(frozen=True)
class Conversion:
    """A finished conversion; `strings_checked` is how many strings its tokenizer was compared on."""

    out: Path
    plan: FilePlan
    seconds: float
    strings_checked: int


def plan(
    model: str | os.PathLike[str],
    type: str = "auto",
    method: str = "mse",
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> FilePlan:
    """Return the whole file as it would be written, without writing it; the arguments are those of `convert`.

    A folder with config.json alone can be planned too: then `exact` is unknown and a missing tokenizer isn't counted.
    """
    return make_plan(open_model(Path(model)), Request.named(type, method, **choices), threads, progress)


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "auto",
    method: str = "mse",
    *,
    force: bool = False,
    check: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    planned: Callable[[FilePlan], None] | None = None,
    **choices: Unpack[Choices],
) -> Conversion:
    """Convert a Hugging Face checkpoint folder, or a GGUF file, to a GGUF file.

    `type` is the tensor type of the linear layers; "auto" takes for each the smallest that holds it exactly and
    runs well on `target` ("cpu", "cuda", "metal", "vulkan", "ollama" or "any"); where none does, the one that loses
    least at `max_bits` per weight or fewer, or without it floats. `method` is how those that aren't
    ternary are made so where a ternary type was asked for ("mse" or "absmean"); tensors on a finer grid than the
    type holds stop the conversion unless `allow_lossy`. `fallback` is the type ("f16") of tensors whose rows don't
    fit. `embedding_type` and `output_type` are by default F16, or what a GGUF source has. `max_shard_size`, in bytes
    or such as "4G", splits a larger file into parts; the result names the first.

    `check` runs the file's vocabulary in the runtime and compares token ids with the source's tokenizer.
    `progress` is called with a stage ("reading", then "writing"), the bytes done and the bytes in all; `planned` once
    before anything is written. Raises TritggufError, leaving no file.
    """
    started, target = time.monotonic(), Path(out)
    require_writable(target, [target], force)
    request = Request.named(type, method, **choices)
    with contextlib.ExitStack() as stack:
        # The child loads the source's tokenizer, since that holds Python's lock.
        runtime = stack.enter_context(_runtime(Path(model))) if check else None
        opened = open_model(Path(model), load_tokenizer=not check)
        written = write_model(
            opened,
            target,
            request,
            force=force,
            check=runtime or False,
            threads=threads,
            progress=progress,
            planned=planned,
        )
    return replace(written, seconds=time.monotonic() - started)


def write_model(
    opened: Model,
    target: Path,
    request: Request,
    *,
    force: bool = False,
    check: RuntimeProcess | bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    planned: Callable[[FilePlan], None] | None = None,
    file_plan: FilePlan | None = None,
) -> Conversion:
    """Plan and write an opened model, unless `file_plan` is its plan already; the arguments are those of `convert`.

    `check` may be the runtime that does it, started before.
    """
    started = time.monotonic()
    if opened.tensors is None:
        raise SourceError(
            f"{opened.path} holds no weights (model.safetensors or its index); it can only be planned: --dry-run"
        )
    file_plan = file_plan or make_plan(opened, request, threads, progress)
    if planned:
        planned(file_plan)
    paths = part_paths(target, len(file_plan.parts))
    require_writable(target, paths, force)
    with whole_files(paths, file_plan.parts) as files, ThreadPoolExecutor(1) as checker:
        checked = None
        if check and opened.tokenizer is not None:
            runtime = check if isinstance(check, RuntimeProcess) else None
            checked = checker.submit(check_token_ids, opened.tokenizer, files[0].path, runtime)
        report = counted(progress, "writing", sum(tensor.n_bytes for tensor in file_plan.tensors))

        def step(n_bytes: int) -> None:
            report(n_bytes)
            if checked is not None and checked.done():
                checked.result()  # raises what it found wrong, before the rest is written

        write_tensors(files, file_plan, opened.tensors, request.method, n_threads(threads), step)
        strings_checked = checked.result() if checked is not None else 0
    return Conversion(paths[0], file_plan, time.monotonic() - started, strings_checked)


def open_model(path: Path, *, load_tokenizer: bool = True) -> Model:
    """Open a Hugging Face folder or a GGUF file; raise TritggufError where it can't be converted."""
    return open_gguf_model(path) if is_gguf(path) else open_hf_model(path, load_tokenizer=load_tokenizer)


def _runtime(model: Path) -> RuntimeProcess:
    return RuntimeProcess(model if (model / TOKENIZER_JSON).is_file() else None)


def make_plan(model: Model, request: Request, threads: int | None, progress: Progress | None) -> FilePlan:
    """Choose a type for every tensor and lay the file out; raise UnsupportedError where it can't run on the target."""
    if request.target not in model.targets:
        architecture = model.metadata[Keys.General.ARCHITECTURE].data
        raise UnsupportedError(
            f"a {architecture} file runs in tritgguf's own runtime alone, on {', '.join(model.targets)}: it can't be "
            f"made --for {request.target}"
        )
    require_taken(request)
    total = sum(tensor.n_bytes for tensor in model.tensors.values()) if model.tensors else 0
    report = counted(progress, "reading", total)
    tensors = survey(model.specs, model.tensors, request, n_threads(threads), report, scale_tensors=model.scale_tensors)
    metadata = with_metadata(model.metadata, _type_metadata(tensors))
    notes = (*model.notes, *_type_notes(tensors, request))
    return FilePlan(lay_out(metadata, tensors, request.max_bytes), notes)


def _type_metadata(tensors: tuple[TensorPlan, ...]) -> Metadata:
    """Return the keys that follow from the types: the file's type is that of most of its linear weights."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.spec.role == "linear":
            file_type = int(tensor.codec.file_type)
            sizes[file_type] = sizes.get(file_type, 0) + tensor.n_bytes
    return {
        Keys.General.FILE_TYPE: uint32(max(sizes, key=lambda file_type: sizes[file_type])),
        Keys.General.QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION),
    }


def _type_notes(tensors: tuple[TensorPlan, ...], request: Request) -> list[str]:
    """Say what the choice of types costs in quality and speed."""
    notes = []
    linear = [tensor for tensor in tensors if tensor.spec.role == "linear"]
    ternary = [tensor for tensor in tensors if tensor.codec.ternary]
    if rounded := [tensor for tensor in ternary if tensor.rounded]:
        notes.append(
            f"{len(rounded)} of {len(ternary)} ternary tensors weren't trained ternary: rounding them to three levels "
            "loses so much that the model's answers will likely be useless; --type f16 keeps the model as it is"
        )
    if lossy := [tensor for tensor in linear if tensor.error]:
        notes.append(
            f"{len(lossy)} of {len(linear)} linear tensors lose something to their type: relative error "
            f"{_spread(lossy)}; --type f16 keeps them as they are"
        )
    if fallen := [tensor for tensor in linear if tensor.fallback]:
        notes.append(f"{len(fallen)} linear tensors are stored as {fallen[0].codec.name}: their rows don't fit")
    if request.type is None and request.max_bits is None and not ternary:
        notes.append(
            "no linear tensor is ternary as a type here holds it: all are kept; --type tq2_0 would make them ternary, "
            "--max-bits takes the types that lose least"
        )
    if request.target == "cpu" and is_x86():
        if any(tensor.codec.name in SLOW_ON_X86 for tensor in linear):
            notes.append("q2_0 has no fast code on x86: expect a tenth of the speed of other ternary types there")
        elif request.type is None and any(_only_fine_types_fit(tensor) for tensor in linear):
            notes.append("q2_0 would hold these weights in half the size of q4_0, but has no fast code on x86")
    return notes


def _spread(tensors: Sequence[TensorPlan]) -> str:
    """Return the least and the largest relative error, as the plan has them."""
    errors = sorted(tensor.error for tensor in tensors if tensor.error is not None)
    return f"{errors[0]:.2g} to {errors[-1]:.2g}"


def _only_fine_types_fit(tensor: TensorPlan) -> bool:
    return tensor.codec.name == "q4_0" and tensor.grid is not None and tensor.grid.fits(codec_named("q2_0").block)

"""convert(): open the model, plan the file, check the tokenizer, write."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from typing_extensions import Unpack

from tritgguf.converter.calibration.basis import planned_in_its_basis
from tritgguf.converter.calibration.calibrate import calibrated
from tritgguf.converter.calibration.tuning import tuned
from tritgguf.converter.conversion.writer import write_tensors
from tritgguf.converter.core.parallel import background, n_threads
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.whole_files import require_writable, whole_files
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.parts import part_paths
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.converter.planning.key_overrides import changes_tokenizer
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.tokenizer import (
    TOKENIZER_JSON,
    ReadTokenIds,
    TokenIdsProvider,
    check_token_ids,
    installed_provider,
)


class Choices(TypedDict, total=False):
    """Options that `convert` and `plan` share; see `convert`."""

    target: str
    fallback: str | None
    embedding_type: str | None
    output_type: str | None
    allow_lossy: bool
    max_bits: float | None
    max_shard_size: int | str | None
    tensor_type: Iterable[str]
    override_kv: Iterable[str]
    name: str | None
    fast_here: Iterable[str]
    imatrix: str | os.PathLike[str] | None
    seconds_per_weight: Mapping[str, float]
    calibration: Iterable[str | os.PathLike[str]]
    calibration_chunks: int | None
    seed: int | None
    gptq_without: Iterable[str]
    untie: bool
    tune: int | None


@dataclass(frozen=True)
class Conversion:
    """A finished conversion; `strings_checked` is the number of strings whose token ids were compared."""

    out: Path
    plan: FilePlan
    seconds: float
    strings_checked: int


def plan(
    model: str | os.PathLike[str],
    type: str = "auto",
    method: str = "mse",
    *,
    lora: str | os.PathLike[str] | None = None,
    values: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    **choices: Unpack[Choices],
) -> FilePlan:
    """Return the plan of the whole file without writing it; the arguments are those of `convert`.

    A folder with only config.json can be planned too: then `exact` is None, and sizes don't include the tokenizer.
    `values` False says that nothing of a GGUF file is here but its header: `exact` is None where values would tell it.
    Raises TritggufError.
    """
    opened = open_model(Path(model), lora=None if lora is None else Path(lora), values=values)
    request = Request.named(type, method, **choices)
    return planned_in_its_basis(opened, request, threads, progress)


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    type: str = "auto",
    method: str = "mse",
    *,
    lora: str | os.PathLike[str] | None = None,
    force: bool = False,
    check: TokenIdsProvider | bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
    planned: Callable[[FilePlan], None] | None = None,
    told: Callable[[str], None] | None = None,
    **choices: Unpack[Choices],
) -> Conversion:
    """Convert a Hugging Face checkpoint folder, or a GGUF file, to a GGUF file.

    `type` is the tensor type of the linear layers. "auto" chooses for each tensor the smallest type that stores it
    exactly and is fast on `target` ("cpu", "cuda", "metal", "vulkan", "ollama" or "any"). If there is none, it chooses
    the type of least error with at most `max_bits` bits per weight, or a float type if `max_bits` is None. `method`
    ("mse", "absmean", "four_levels" or "gptq") quantizes tensors that aren't ternary, if a ternary type is requested.
    `imatrix`, a file of llama-imatrix or `tritgguf imatrix`, weighs the errors of their columns. A tensor whose own
    grid that type can't store is an error unless `allow_lossy`. `fallback` ("f16") is the type of tensors whose rows
    aren't a multiple of the type's block. `embedding_type` and `output_type` are by default as "auto" with type "auto":
    the smallest type that holds a ternary or four-level tensor exactly, or else F16, or the type in a GGUF source. With
    another type they are F16, or the type in a GGUF source. `tensor_type` has texts REGEX=TYPE: the first whose pattern
    is found in a tensor's GGUF name decides about it. `max_shard_size`, in bytes or like "4G", splits a larger file
    into parts; the result names the first part. `override_kv` has texts KEY=TYPE:VALUE (int, float, bool or str), and
    `name` is general.name. `lora` is the folder of a PEFT adapter to merge into the weights first. `fast_here` are
    types that are fast on this computer's CPU, target "cpu", though llama.cpp's own code for them is slow there.
    `seconds_per_weight` has, by types' names, what a weight takes on that CPU when a token is generated: then "auto"
    chooses a larger exact type that is at least a twentieth faster than the smallest.

    With `method` "gptq", codes are chosen for what the model computes on text (docs/quality.md), which takes torch and
    time: `calibration` are files of text, by default the text that comes with the package, of which
    `calibration_chunks` (128) are taken by `seed` (0). `gptq_without` names steps to leave out, `untie` gives a tied
    model an output layer of its own, so that it can be rotated. After that, `tune` steps of distillation tune scales,
    norms and biases on other chunks, which is kept where it helps on held-out ones. What is done lies in folders beside
    `out`, so that another run goes on where one was stopped. `told` gets a line for each block.

    `check` compares the file's token ids with those of the source's tokenizer; True takes the installed provider of
    token ids, or give one. `progress` is called with a stage ("reading", then "writing"), the bytes done and the total
    bytes; `planned` once with the plan, before anything is written. `threads` is one per core by default. Raises
    TritggufError and leaves no file.
    """
    started, target = time.monotonic(), Path(out)
    require_writable(target, [target], force)
    request = Request.named(type, method, **choices)
    with contextlib.ExitStack() as stack:
        # The provider starts first and loads the source's tokenizer meanwhile, which would hold Python's lock here.
        provider = installed_provider() if check is True else check or None
        read = stack.enter_context(provider(_tokenizer_folder(Path(model)))) if provider else None
        opened = open_model(
            Path(model), load_tokenizer=not check, token_ids=provider, lora=None if lora is None else Path(lora)
        )
        if request.calibration is not None:
            for fitted in (calibrated, tuned) if request.calibration.tune else (calibrated,):
                # What can't be stored fails in this plan, not hours later.
                fit = fitted(
                    opened,
                    make_plan(opened, request, threads, progress),
                    request.calibration,
                    target,
                    threads=threads,
                    progress=progress,
                    told=told,
                )
                opened = stack.enter_context(fit)
        written = write_model(
            opened,
            target,
            request,
            force=force,
            check=read,
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
    check: ReadTokenIds | None,
    threads: int | None = None,
    progress: Progress | None = None,
    planned: Callable[[FilePlan], None] | None = None,
    file_plan: FilePlan | None = None,
) -> Conversion:
    """Plan an opened model, or take its plan from `file_plan`, and write it; the arguments are those of `convert`.

    `check` gives the file's token ids, to be compared with the source's; None leaves the comparison out.
    """
    started = time.monotonic()
    if opened.tensors is None:
        raise SourceError(
            f"{opened.path} holds no weights (model.safetensors, pytorch_model.bin or an index); it can only be "
            "planned: --dry-run"
        )
    file_plan = file_plan or make_plan(opened, request, threads, progress)
    if planned:
        planned(file_plan)
    paths = part_paths(target, len(file_plan.parts))
    require_writable(target, paths, force)
    with whole_files(paths, file_plan.parts, force=force) as files, contextlib.ExitStack() as stack:
        checked = None
        if check and opened.tokenizer is not None and not changes_tokenizer(request.overrides):
            checking = partial(check_token_ids, opened.tokenizer, files[0].path, check)
            checked = stack.enter_context(background(checking))
        report = counted(progress, "writing", sum(tensor.n_bytes for tensor in file_plan.tensors))
        strings_checked = 0

        def step(n_bytes: int) -> None:
            nonlocal checked, strings_checked
            report(n_bytes)
            if checked is not None and checked.done:
                # Raises what it found wrong, before the rest is written.
                strings_checked, checked = checked.result(), None

        write_tensors(files, file_plan, opened.tensors, n_threads(threads), step)
        if checked is not None:
            strings_checked = checked.result()
    return Conversion(paths[0], file_plan, time.monotonic() - started, strings_checked)


def _tokenizer_folder(model: Path) -> Path | None:
    return model if (model / TOKENIZER_JSON).is_file() else None

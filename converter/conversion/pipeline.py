"""convert(): open the model, plan the file, check the tokenizer, write."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from typing_extensions import Unpack

from tritgguf.converter.conversion.writer import write_tensors
from tritgguf.converter.core.parallel import n_threads
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.whole_files import require_writable, whole_files
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.parts import part_paths
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.file_plan import FilePlan
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
    check: TokenIdsProvider | bool = True,
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

    `check` has the installed provider of token ids, or the one given, read the file's vocabulary, and compares the
    token ids with those of the source's tokenizer.
    `progress` is called with a stage ("reading", then "writing"), the bytes done and the bytes in all; `planned` once
    before anything is written. Raises TritggufError, leaving no file.
    """
    started, target = time.monotonic(), Path(out)
    require_writable(target, [target], force)
    request = Request.named(type, method, **choices)
    with contextlib.ExitStack() as stack:
        # The provider starts first and loads the source's tokenizer meanwhile, which would hold Python's lock here.
        provider = installed_provider() if check is True else check or None
        read = stack.enter_context(provider(_tokenizer_folder(Path(model)))) if provider else None
        opened = open_model(Path(model), load_tokenizer=not check, token_ids=provider)
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
    """Plan and write an opened model, unless `file_plan` is its plan already; the arguments are those of `convert`.

    `check` gives the file's token ids, to be compared with the source's; None leaves the comparison out.
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
            checked = checker.submit(check_token_ids, opened.tokenizer, files[0].path, check)
        report = counted(progress, "writing", sum(tensor.n_bytes for tensor in file_plan.tensors))

        def step(n_bytes: int) -> None:
            report(n_bytes)
            if checked is not None and checked.done():
                checked.result()  # raises what it found wrong, before the rest is written

        write_tensors(files, file_plan, opened.tensors, n_threads(threads), step)
        strings_checked = checked.result() if checked is not None else 0
    return Conversion(paths[0], file_plan, time.monotonic() - started, strings_checked)


def _tokenizer_folder(model: Path) -> Path | None:
    return model if (model / TOKENIZER_JSON).is_file() else None

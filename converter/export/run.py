"""quantize(): open a checkpoint, plan the folder, quantize and pack its tensors chunk by chunk, write the folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import tritgguf
from tritgguf.converter.checkpoint.safetensors_layout import Shard, index_file
from tritgguf.converter.core.dtypes import BY_CODEC
from tritgguf.converter.core.floats import squares
from tritgguf.converter.core.parallel import n_threads, parallel
from tritgguf.converter.core.progress import Progress, Step, counted
from tritgguf.converter.core.system import keep_free_memory
from tritgguf.converter.core.whole_files import whole_files, write_at
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.export.code_files import code_files
from tritgguf.converter.export.model_card import TensorFacts, config_json, model_card
from tritgguf.converter.export.output_folder import COPIED, finished, note_finished, require_folder, whole_folder
from tritgguf.converter.export.plan import SHARD_BYTES, ExportPlan, Form, TensorExport, plan_export, weight_files
from tritgguf.converter.export.scheme import scheme_named
from tritgguf.converter.tokenizer import TokenIdsProvider, check_token_ids, installed_provider, read_tokenizer


@dataclass(frozen=True)
class Quantization:
    """A finished folder; `facts` tells what rounding changed in each tensor."""

    out: Path
    plan: ExportPlan
    facts: tuple[TensorFacts, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        tensors = [{"name": fact.name, "coded": fact.coded, "error": fact.error} for fact in self.facts]
        return {"out": str(self.out), "seconds": self.seconds, **self.plan.as_json(), "tensors": tensors}


def form_named(
    scheme: str | None,
    *,
    dequantized: bool | None = None,
    dtype: str = "f16",
    embeddings: str = "packed",
    allow_lossy: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Form:
    """Look the names up; raise UnsupportedError that lists the known ones. Without a scheme, a model is dequantized."""
    if dtype not in BY_CODEC:
        raise UnsupportedError(f"unknown dtype {dtype!r}; expected one of {', '.join(BY_CODEC)}")
    if embeddings not in ("packed", "plain"):
        raise UnsupportedError(f"embeddings can be packed or plain, found {embeddings!r}")
    if scheme is None:
        if dequantized is False:
            raise UnsupportedError("without a scheme a folder can only be dequantized")
        return Form(None, True, BY_CODEC[dtype], shard_bytes=shard_bytes)
    named = scheme_named(scheme)
    floats = named.dequantized if dequantized is None else dequantized
    packs = named.packs_embeddings and embeddings == "packed"
    return Form(named, floats, BY_CODEC[dtype], packs, allow_lossy, shard_bytes)


def plan_quantization(
    model: str | os.PathLike[str],
    form: Form,
    *,
    values: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> ExportPlan:
    """Return the plan of the folder; a folder with only config.json is enough for the sizes.

    `values` False says that nothing of a GGUF file is here but its header.
    """
    source = Path(model)
    total = sum(path.stat().st_size for path in weight_files(source))
    return plan_export(source, form, n_threads(threads), counted(progress, "reading", total), values=values)


def quantize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    form: Form | str,
    *,
    force: bool = False,
    resume: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    planned: Callable[[ExportPlan], None] | None = None,
    check: TokenIdsProvider | bool = True,
) -> Quantization:
    """Quantize a Hugging Face checkpoint folder, or a GGUF file of a known architecture; write it as another folder.

    `form` is a scheme's name, or what `form_named` returns. `out` appears when it is complete. With `resume` an
    interrupted run keeps its finished files in OUT.part, and the next run writes only the others. A GGUF file's
    tokenizer becomes a tokenizer.json. `check` compares the token ids of both; True takes the installed provider of
    token ids, or give one. Raises TritggufError.
    """
    started = time.monotonic()
    source, target = Path(model), Path(out)
    require_folder(target, source, force)
    keep_free_memory()
    plan = plan_quantization(
        source, form_named(form) if isinstance(form, str) else form, threads=threads, progress=progress
    )
    if any(tensor.source is None for tensor in plan.tensors):
        raise SourceError(f"{model} holds no weights; it can only be planned, with --dry-run")
    if planned:
        planned(plan)
    report = counted(progress, "writing", plan.weight_bytes)
    facts: list[TensorFacts] = []
    with whole_folder(target, _identity(plan), resume, force=force) as partial:
        for shard in plan.shards:
            facts += _write_shard(partial, shard, plan, n_threads(threads), report)
        _write_texts(partial, plan, facts)
        if plan.texts and check:
            _check_tokenizer(partial, plan, installed_provider() if check is True else check)
    return Quantization(target, plan, tuple(facts), time.monotonic() - started)


def _identity(plan: ExportPlan) -> dict[str, Any]:
    """Return what must be equal for an interrupted run to be resumed: version, model, options and layout."""
    headers = hashlib.sha256(b"".join(shard.header for shard in plan.shards)).hexdigest()
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in weight_files(plan.model)}
    form = {"scheme": plan.form.name, "dequantized": plan.form.dequantized, "dtype": plan.form.dtype}
    config = hashlib.sha256(json.dumps(plan.config, sort_keys=True).encode()).hexdigest()
    model = {"model": str(plan.model.resolve()), "files": files, "config": config}
    return {"version": tritgguf.__version__, **model, "form": form, "headers": headers}


def _write_shard(partial: Path, shard: Shard, plan: ExportPlan, threads: int, report: Step) -> list[TensorFacts]:
    done = finished(partial, shard.file_name, shard.file_bytes)
    if done is not None:
        report(shard.file_bytes)
        return [TensorFacts(**fact) for fact in done]
    held = {entry.name for entry in shard.entries}
    with whole_files([partial / shard.file_name], [shard], force=True) as (part,):
        facts = [
            _write_tensor(part.file, shard, tensor, threads, report)
            for tensor in plan.tensors
            if tensor.entries[0].name in held
        ]
        for tensor in plan.tensors:
            if tensor.source is not None:
                tensor.source.require_unchanged()
        note_finished(partial, shard.file_name, [asdict(fact) for fact in facts])
    return facts


def _write_tensor(file: BinaryIO, shard: Shard, tensor: TensorExport, threads: int, report: Step) -> TensorFacts:
    """Write one tensor by chunks of rows, in parallel; return what rounding changed in it."""
    name, shape, source, packer = tensor.spec.source, tensor.spec.shape, tensor.source, tensor.packer
    assert source is not None
    coder = tensor.scheme.coder(source, tensor.grid, threads) if tensor.scheme else None

    def write_chunk(chunk: slice) -> tuple[int, float, float]:
        rows = packer.rows(shape, chunk)
        source.read_now(rows)
        values = source.read(rows)
        source.evict(rows)
        pieces, stored = packer.encode(name, shape, chunk, values, coder)
        for entry, offset, data in pieces:
            write_at(file, np.ascontiguousarray(data).data, shard.offsets[entry] + offset)
        return sum(data.nbytes for *_, data in pieces), *squares(values, stored)

    error = total = 0.0
    for n_bytes, squared, sum_of_squares in parallel(write_chunk, list(packer.chunks(shape)), threads):
        report(n_bytes)
        error, total = error + squared, total + sum_of_squares
    return TensorFacts(name, tensor.scheme is not None, tensor.n_weights, error, total)


def _check_tokenizer(folder: Path, plan: ExportPlan, provider: TokenIdsProvider) -> None:
    """Raise TokenizerError where the folder's tokenizer gives other ids than the GGUF file that it was made of."""
    n_vocab = plan.config["vocab_size"]
    with provider(folder) as read:
        check_token_ids(read_tokenizer(folder, n_vocab=n_vocab, config=plan.config, load=False), plan.model, read)


def _write_texts(partial: Path, plan: ExportPlan, facts: list[TensorFacts]) -> None:
    """Write index, config.json and README.md, and copy the tokenizer's files and the model's code."""
    texts = {"config.json": json.dumps(config_json(plan), indent=2) + "\n", "README.md": model_card(plan, facts)}
    if index := index_file(plan.shards):
        texts |= dict([index])
    texts |= {name: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for name, content in plan.texts.items()}
    for name, text in texts.items():
        (partial / name).write_text(text, "utf-8")
    if plan.model.is_file():
        return
    copied = {path.name for pattern in COPIED for path in plan.model.glob(pattern)} | code_files(plan.model)
    for name in sorted(copied):
        if (plan.model / name).is_file():
            shutil.copyfile(plan.model / name, partial / name)

"""The types that each tensor of a model could have, and what it takes in each: what --budget chooses from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.gguf_io.header import aligned, entry_bytes
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.model import Model
from tritgguf.converter.planning.choose_types import choose_type, with_scale_tensor
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.smallest_exact import REPLACEABLE
from tritgguf.converter.planning.targets import float_types, reads_rows, ternary_types_for
from tritgguf.converter.planning.tensor_types import AUTO, TensorType
from tritgguf.converter.quant.codec import codecs

LARGER = ("bf16", "f32")  # not worth their bytes where F16 holds the values
_BLOCK = re.compile(r"^blk\.(\d+)\.")
_MOST_BLOCKS = 40  # in one pattern, which may have only so many characters


@dataclass(frozen=True)
class TypeChoice:
    """One type that a tensor could have.

    `type` is its name for --tensor-type, None where the user's own options decide about the tensor. `plan` is what
    `convert` makes of it, and `n_bytes` what it takes in the file.
    """

    type: str | None
    plan: TensorPlan
    n_bytes: int


def type_choices(
    model: Model, request: Request, threads: int, progress: Progress | None = None
) -> list[tuple[TypeChoice, ...]]:
    """Return the choices for each linear layer, the token embeddings and the output layer, smallest first.

    Choices are all types that run on the target, that the rows fit and that `convert` makes of the tensor without
    further options; one alone where the user asked for a type for this tensor. `progress` is called with "reading", the
    bytes of tensors done and their total. Raises TensorError or UnsupportedError where there is none.
    """
    tied = all(spec.role != "output" for spec in model.specs)
    assert model.tensors is not None
    tensors, specs = model.tensors, [spec for spec in model.specs if spec.role in REPLACEABLE]
    step = counted(progress, "reading", sum(tensors[spec.source].n_bytes for spec in specs))

    def choices(spec: TensorSpec) -> tuple[TypeChoice, ...]:
        found = _choices(spec, tensors[spec.source], request, tied=tied, scale_tensors=model.scale_tensors)
        return _worthwhile(sorted(found, key=lambda choice: choice.n_bytes))

    result = []
    for spec, some in zip(specs, parallel(choices, specs, threads), strict=True):
        result.append(some)
        step(tensors[spec.source].n_bytes)
    return result


def as_tensor_types(chosen: Iterable[TypeChoice]) -> list[str]:
    """Return texts REGEX=TYPE that ask `convert` for these choices, blocks of one kind and type in one text."""
    blocks: dict[tuple[str, str], list[str]] = {}
    texts = []
    for choice in chosen:
        name, found = choice.plan.spec.name, _BLOCK.match(choice.plan.spec.name)
        if choice.type is None:
            continue
        if found is None:
            texts.append(f"^{re.escape(name)}$={choice.type}")
        else:
            blocks.setdefault((name[found.end() :], choice.type), []).append(found[1])
    for (rest, kind), numbers in blocks.items():
        for start in range(0, len(numbers), _MOST_BLOCKS):
            some = "|".join(numbers[start : start + _MOST_BLOCKS])
            texts.append(rf"^blk\.({some})\.{re.escape(rest)}$={kind}")
    return texts


def _choices(
    spec: TensorSpec, source: SourceTensor, request: Request, *, tied: bool, scale_tensors: bool
) -> list[TypeChoice]:
    def made(name: str | None) -> TypeChoice:
        asking = request if name is None else _asking(request, spec, name)
        plan = choose_type(spec, source, asking, tied=tied)
        stored = with_scale_tensor(plan) if scale_tensors else [plan]
        return TypeChoice(name, plan, sum(aligned(one.n_bytes) + entry_bytes(one.entry) for one in stored))

    asked = request.asked(spec)
    if asked.alone and not asked.by_default:
        return [made(None)]
    found: list[TypeChoice] = []
    for name in _names(spec, request, tied=tied):
        try:
            choice = made(name)
        except (TensorError, UnsupportedError):
            continue
        if choice.plan.error != math.inf:  # a value that is out of the type's range
            found.append(choice)
    floats = next((choice for choice in found if choice.type == "f16"), None)
    exact = made(AUTO)
    if floats is None or exact.n_bytes < floats.n_bytes:
        found.append(exact)
    return found


def _worthwhile(choices: Sequence[TypeChoice]) -> tuple[TypeChoice, ...]:
    """Return the choices, smallest first, without those after the first exact one."""
    first = next((number for number, choice in enumerate(choices) if choice.plan.exact), len(choices))
    return tuple(choices[: first + 1])


def _asking(request: Request, spec: TensorSpec, name: str) -> Request:
    codec = None if name == AUTO else codecs()[name]
    return replace(request, tensor_types=(TensorType(re.compile(f"^{re.escape(spec.name)}$"), codec),))


def _names(spec: TensorSpec, request: Request, *, tied: bool) -> Iterator[str]:
    running = (
        *ternary_types_for(request.target, spec.role, tied=tied, fast_here=request.fast_here),
        *float_types(request.target),
    )
    for name in dict.fromkeys(running):
        looked_up = spec.role != "embedding" or reads_rows(request.target, name)
        if name not in LARGER and looked_up and spec.shape[-1] % codecs()[name].block == 0:
            yield name


def kinds(chosen: Sequence[TypeChoice]) -> dict[str, dict[str, int]]:
    """Return how many tensors of each kind, such as attn_q, have which type."""
    found: dict[str, dict[str, int]] = {}
    for choice in chosen:
        kind = _BLOCK.sub("", choice.plan.spec.name).removesuffix(".weight")
        types = found.setdefault(kind, {})
        types[choice.plan.codec.name] = types.get(choice.plan.codec.name, 0) + 1
    return found

"""Inspect a model: its tensors' grids, the types that store them exactly, and the file size with each type.

A model that can't be converted is inspected as far as it can be read; the result has the reason for the refusal.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, Keys

from tritgguf.converter.checkpoint.config_json import named_classes, read_config_json
from tritgguf.converter.checkpoint.header_files import DescribedTensor, only_described
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.weights import read_weights
from tritgguf.converter.core.parallel import n_threads, parallel
from tritgguf.converter.core.progress import Progress, counted
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, TritggufError
from tritgguf.converter.gguf_io.header import header_bytes
from tritgguf.converter.gguf_io.metadata import joined, uint32
from tritgguf.converter.gguf_io.reader import is_gguf, read_gguf
from tritgguf.converter.gguf_io.tensor_types import shared_stock_types
from tritgguf.converter.inspection.tensor_facts import TensorFacts, inspect_tensor
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.choose_types import choose_type, with_scale_tensor
from tritgguf.converter.planning.encoders import encoder_for
from tritgguf.converter.planning.file_plan import FilePart, TensorPlan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.converter.planning.tensor_types import AUTO
from tritgguf.converter.quant.codec import AnyCodec, Codec, codecs
from tritgguf.converter.quant.method import method_named

EMBEDDING = re.compile(r"(^|\.)(embed\w*|token_embd|wte|wpe)\.")
OUTPUT = re.compile(r"^(lm_head|output)\.")
HEADER_ALONE = "inspected from the file's header alone: which types hold the tensors exactly isn't known"


@dataclass(frozen=True)
class Size:
    """The file with linear layers of one type, or with every tensor in the smallest exact one ("auto", for the CPU).

    `file_bytes` is None if no linear tensor fits the type. Of `n_linear` linear tensors, the type stores `n_exact`
    exactly, and `n_near` more except that scales are rounded to fp16; both are None if there are no weights. `n_unfit`
    are stored as F16, since their rows aren't a multiple of the type's block. `runs_on` are the targets with fast
    kernels for the type, `slow_on` the processors without.
    """

    type: str
    file_bytes: int | None
    n_linear: int
    n_exact: int | None
    n_near: int | None
    n_unfit: int
    runs_on: tuple[str, ...]
    slow_on: tuple[str, ...]

    @property
    def exact(self) -> bool | None:
        return None if self.n_exact is None else self.n_exact == self.n_linear

    def as_json(self) -> dict[str, Any]:
        return {
            "file_bytes": self.file_bytes,
            "exact": self.exact,
            "exact_tensors": self.n_exact,
            "near_tensors": self.n_near,
            "linear_tensors": self.n_linear,
            "stored_as_f16": self.n_unfit,
            "runs_on": list(self.runs_on),
            "slow_on": list(self.slow_on),
        }


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `refused` is the reason why the model can't be converted, else None.

    `kind` is "folder" or "gguf", `source` the packing of the checkpoint, `file_bytes` the size of all its tensors.
    """

    kind: str
    path: Path
    architecture: str | None
    hf_class: str | None
    source: str | None
    file_bytes: int
    tensors: tuple[TensorFacts, ...] = field(repr=False)
    sizes: Mapping[str, Size]
    notes: tuple[str, ...]
    refused: str | None

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """The number of tensors of each dtype, most frequent first."""
        return dict(Counter(tensor.dtype for tensor in self.tensors).most_common())

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "path": self.path.name,
            "architecture": self.architecture,
            "class": self.hf_class,
            "source": self.source,
            "parameters": self.n_parameters,
            "file_bytes": self.file_bytes,
            "dtypes": self.dtypes,
            "tensors": [tensor.as_json() for tensor in self.tensors],
            "sizes": {name: size.as_json() for name, size in self.sizes.items()},
            "notes": list(self.notes),
            "refused": self.refused,
        }


def inspect(
    path: str | os.PathLike[str],
    *,
    values: bool = True,
    scales: bool = False,
    fast_here: Collection[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Inspect a Hugging Face folder or a GGUF file; reads every weight, unless `values` says that they aren't there.

    `scales` has the scales of every tensor counted, for a report. `fast_here` is that of `convert`. `threads` is one
    per core by default; `progress` is called with "reading", the bytes done and the total bytes.
    Raises TritggufError if nothing can be read: the file is damaged, or the folder isn't a model.
    """
    place = Path(path)
    try:
        model, refused = open_model(place), None
    except TritggufError as error:
        model, refused = _seen(place, error), str(error)
    header_alone = not values and model.tensors is not None  # of a GGUF file; folders with headers say so themselves
    if header_alone:
        model = replace(model, tensors=None, notes=[*model.notes, HEADER_ALONE])
    stored = _stored(place)
    specs = [spec for spec in model.specs if spec.data is None]
    sizes_on_disk = _with_companions(specs, {name: size for name, (size, _) in stored.items()}, model.tensors or {})
    report = counted(progress, "reading", sum(sizes_on_disk))

    def facts(item: tuple[TensorSpec, int]) -> tuple[TensorFacts, TensorPlan | None, int]:
        spec, n_bytes = item
        source = None if model.tensors is None else model.tensors[spec.source]
        found = inspect_tensor(spec, source, n_bytes, scale_tensors=model.scale_tensors, scales=scales)
        if source is None and spec.source in stored:
            found = replace(found, dtype=stored[spec.source][1])
        return found, None if refused else _smallest(spec, source, found, model, fast_here), n_bytes

    tensors, smallest = [], {}
    for found, plan, n_bytes in parallel(facts, zip(specs, sizes_on_disk, strict=True), n_threads(threads)):
        tensors.append(found)
        smallest[found.name] = plan
        report(n_bytes)
    notes = (*model.notes, *_stock_notes(place), *dict.fromkeys(tensor.note for tensor in tensors if tensor.note))
    classes = [] if is_gguf(place) else named_classes(read_config_json(place))
    return Inspection(
        kind="gguf" if is_gguf(place) else "folder",
        path=place.resolve() if place.is_dir() else place.absolute(),  # a link to a blob has the name, not the blob
        architecture=_architecture(model),
        hf_class=classes[0] if classes else None,
        source=model.source,
        file_bytes=sum(size for size, _ in stored.values()),
        tensors=tuple(tensors),
        # Which of a GGUF file's tensors keep their types depends on their values.
        sizes={} if refused or header_alone else {**_smallest_size(model, smallest), **_sizes(model, tensors)},
        notes=notes,
        refused=refused,
    )


def _seen(path: Path, refusal: TritggufError) -> Model:
    """Return as much as can be read of a refused model; raise the refusal if nothing can."""
    try:
        tensors, source = _open_tensors(path)
    except (TritggufError, OSError, ValueError):
        raise refusal from None
    specs = [TensorSpec(name, name, tensor.shape, _role(name, tensor.shape)) for name, tensor in tensors.items()]
    metadata = dict(read_gguf(path).metadata) if is_gguf(path) else {}
    values = None if any(isinstance(tensor, DescribedTensor) for tensor in tensors.values()) else tensors
    return Model(path, source, specs, values, metadata, None, [], scale_tensors=False)


def _open_tensors(path: Path) -> tuple[Mapping[str, SourceTensor], str | None]:
    if is_gguf(path):
        return read_gguf(path).tensors, "GGUF"
    stored = read_weights(path)
    if stored is None:
        raise SourceError(f"{path} holds no weights")
    if only_described(stored):
        return stored, None
    linear = {name for name, tensor in stored.items() if _role(name, tensor.shape) == "linear"}
    config = read_config_json(path)
    try:
        packing, tensors = read_packing(config, stored, linear)
        return tensors, packing
    except TritggufError:
        return stored, None


def _role(name: str, shape: Sequence[int]) -> str:
    if EMBEDDING.search(name):
        return "embedding"
    if OUTPUT.search(name):
        return "output"
    return "linear" if len(shape) > 1 and name.endswith("weight") else "other"


def _architecture(model: Model) -> str | None:
    key = model.metadata.get(Keys.General.ARCHITECTURE)
    return str(key.data) if key else None


def _stored(path: Path) -> dict[str, tuple[int, str]]:
    """Return each tensor's size in bytes and its dtype by its name on disk."""
    tensors: Mapping[str, SourceTensor] = read_gguf(path).tensors if is_gguf(path) else read_weights(path) or {}
    return {name: (tensor.n_bytes, tensor.dtype) for name, tensor in tensors.items()}


def _stock_notes(path: Path) -> list[str]:
    """Return which tensors have llama.cpp's own type of a number that other programs use for other types."""
    if not is_gguf(path):
        return []
    types = Counter(tensor.ggml_type for tensor in read_gguf(path).tensors.values() if tensor.ggml_type is not None)
    return [
        f"{types[kind]} tensors are {kind.name} (type {kind:d}), {layout}, as in llama.cpp: programs made with it "
        "load them"
        for kind, layout in shared_stock_types(types).items()
    ]


def _with_companions(
    specs: Sequence[TensorSpec], stored: Mapping[str, int], tensors: Mapping[str, SourceTensor]
) -> list[int]:
    """Return each tensor's size in bytes, including its scales; mostly their names begin with the tensor's name.

    Where one stored tensor holds several of the model's, each has a share by its number of values.
    """
    names = sorted(stored)
    n_values: Counter[str] = Counter()
    for spec in specs:
        n_values.update(dict.fromkeys(spec.names, math.prod(spec.shape)))

    def size(name: str, spec: TensorSpec) -> int:
        first = last = bisect_left(names, name)
        while last < len(names) and names[last].startswith(name):
            last += 1
        n_bytes = sum(stored[companion] for companion in names[first:last])
        return n_bytes * math.prod(spec.shape) // n_values[name]

    return [
        max(sum(size(name, spec) for name in spec.names), tensors[spec.source].n_bytes if spec.source in tensors else 0)
        for spec in specs
    ]


def _smallest(
    spec: TensorSpec, source: SourceTensor | None, facts: TensorFacts, model: Model, fast_here: Collection[str]
) -> TensorPlan | None:
    """Return the tensor's plan in the smallest exact type; None where there are no weights, or none can be chosen."""
    tied = all(other.role != "output" for other in model.specs)
    if source is None or model.only_floats is not None:
        return None
    try:
        request = Request.named(AUTO, "mse", fast_here=fast_here)
        return choose_type(spec, source, request, tied=tied, grid_of=lambda _source: facts.grid)
    except TritggufError:
        return None


def _smallest_size(model: Model, chosen: Mapping[str, TensorPlan | None]) -> dict[str, Size]:
    """Return the size of the file that `convert` makes without --type; empty where it makes none."""
    plans: list[TensorPlan] = []
    for spec in model.specs:
        if spec.data is not None:
            plans.append(TensorPlan(encoder_for(spec, codecs()["f32"], method_named("mse")), spec.role))
        elif (plan := chosen[spec.name]) is None:
            return {}
        else:
            plans += with_scale_tensor(plan) if model.scale_tensors else [plan]
    linear = [plan for plan in plans if plan.spec.role == "linear"]
    n_exact = sum(plan.exact is True for plan in linear)
    n_near = sum(plan.grid is not None and not plan.exact for plan in linear)
    return {AUTO: Size(AUTO, _file_bytes(model, plans), len(linear), n_exact, n_near, 0, ("cpu",), ())}


def _sizes(model: Model, tensors: Sequence[TensorFacts]) -> dict[str, Size]:
    """Return the file's size with each type of linear layers, smallest type first."""
    grids = {tensor.name: tensor for tensor in tensors}
    request = Request.named("f16", "mse")
    types = sorted((codec for codec in codecs().values() if codec.for_linear), key=lambda codec: codec.bits_per_weight)
    others = {
        spec.name: choose_type(spec, None if model.tensors is None else model.tensors.get(spec.source), request)
        for spec in model.specs
        if spec.role != "linear" and spec.data is None
    }
    return {codec.name: _size(model, codec, grids, others) for codec in types}


def _size(model: Model, codec: AnyCodec, facts: Mapping[str, TensorFacts], others: Mapping[str, TensorPlan]) -> Size:
    known, any_method = codecs(), method_named("mse")  # no method changes a size
    plans: list[TensorPlan] = []
    for spec in model.specs:
        if spec.name in others:
            plans.append(others[spec.name])
        elif spec.data is not None:
            plans.append(TensorPlan(encoder_for(spec, known["f32"], any_method), spec.role))
        else:
            fits = spec.shape[-1] % codec.block == 0
            grid = facts[spec.name].grid if fits else None
            on_grid = grid if grid is not None and codec.ternary is True and grid.fits(codec) else None
            plan = TensorPlan(encoder_for(spec, codec if fits else known["f16"], any_method, on_grid), spec.role)
            plans += with_scale_tensor(plan) if model.scale_tensors else [plan]
    linear = [spec for spec in model.specs if spec.role == "linear"]
    n_unfit = sum(spec.shape[-1] % codec.block != 0 for spec in linear)
    n_exact = sum(codec.name in facts[spec.name].exact_types for spec in linear)
    n_near = sum(codec.name in facts[spec.name].near_types for spec in linear)
    return Size(
        type=codec.name,
        file_bytes=_file_bytes(model, plans) if n_unfit < len(linear) else None,
        n_linear=len(linear),
        n_exact=None if model.tensors is None else n_exact,
        n_near=None if model.tensors is None else n_near,
        n_unfit=n_unfit,
        runs_on=_runs_on(codec, model.targets or TARGETS),
        slow_on=("x86",) if codec.slow_on_x86 else (),
    )


def _file_bytes(model: Model, plans: Sequence[TensorPlan]) -> int:
    # These keys' values depend on the types, but not their sizes: any values will do.
    types = {Keys.General.FILE_TYPE: uint32(0), Keys.General.QUANTIZATION_VERSION: uint32(GGML_QUANT_VERSION)}
    header = header_bytes(joined(model.metadata, types), [plan.entry for plan in plans])
    return FilePart(header, tuple(plans)).file_bytes


def _runs_on(codec: Codec, targets: Sequence[str]) -> tuple[str, ...]:
    """Return where the type has fast kernels, among where the graph runs."""
    return tuple(target for target in targets if target in codec.runs_on)

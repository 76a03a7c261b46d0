"""Look at the weights before they are written: which tensors does their planned type hold exactly?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tritgguf.converter.codec import FloatCodec, TernaryCodec
from tritgguf.converter.grids import Grid, code_on_grid, describe_grid
from tritgguf.converter.method import Method
from tritgguf.converter.parallel import parallel
from tritgguf.converter.plan import TensorPlan
from tritgguf.converter.tensors import FloatRows

CHUNK_VALUES = 1 << 18
ALWAYS_EXACT = {("f32", "F32"), ("f32", "BF16"), ("f32", "F16"), ("f16", "F16")}

ProgressBytes = Callable[[int], None]


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices over the rows of a tensor, each of about a megabyte of float32; a 1-D tensor is one row."""
    n_rows = shape[0] if len(shape) == 2 else 1
    step = max(1, CHUNK_VALUES // max(shape[-1], 1))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def survey(
    plans: Sequence[TensorPlan],
    tensors: Mapping[str, FloatRows],
    method: Method,
    threads: int,
    progress: ProgressBytes,
) -> tuple[TensorPlan, ...]:
    """Return the plans with `exact`, `reason` and `on_grid` set; each tensor is read until the answer is known.

    `progress` is called with the planned bytes of each tensor that is done.
    """
    surveyed = []
    for plan in parallel(lambda plan: _survey_tensor(plan, tensors, method), plans, threads):
        surveyed.append(plan)
        progress(plan.n_bytes)
    return tuple(surveyed)


def _survey_tensor(plan: TensorPlan, tensors: Mapping[str, FloatRows], method: Method) -> TensorPlan:
    if plan.spec.data is not None:
        return plan.surveyed(True, plan.reason)
    source = tensors[plan.spec.source]
    if isinstance(plan.codec, FloatCodec):
        return _survey_floats(plan, source, plan.codec)
    assert isinstance(plan.codec, TernaryCodec)
    grid = find_grid(source, plan.codec.block)
    if grid is None:
        return plan.surveyed(False, f"not on a ternary grid: rounded by {method.name}, which loses quality")
    found = f"on a ternary grid per {grid.extent}, {grid.zeros:.0%} zeros"
    if grid.exact:
        return plan.surveyed(True, found, on_grid=True)
    return plan.surveyed(False, f"{found}; codes exact, scale rounded to fp16 by {grid.fp16_error:.1e}", on_grid=True)


def _survey_floats(plan: TensorPlan, source: FloatRows, codec: FloatCodec) -> TensorPlan:
    kind = codec.name.upper()
    if (codec.name, source.dtype) in ALWAYS_EXACT:
        return plan.surveyed(True, plan.reason)
    for rows in row_chunks(source.shape):
        values = source.read(rows)
        if not np.array_equal(codec.decode(codec.encode(values)), values):
            return plan.surveyed(False, f"{plan.reason}; {source.dtype} values outside {kind} are rounded")
    return plan.surveyed(True, plan.reason)


def find_grid(source: FloatRows, block: int) -> Grid | None:
    """Return the tensor's ternary grid, or None as soon as one block of `block` columns has none."""
    scales, n_zeros = [], 0
    for rows in row_chunks(source.shape):
        coded = code_on_grid(source.read(rows), block)
        if coded is None:
            return None
        scales.append(coded.scales)
        n_zeros += int((coded.codes == 0).sum())
    return describe_grid(np.concatenate(scales), n_zeros, source.shape[-1])

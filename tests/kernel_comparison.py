"""Comparing kernels with numpy: the same bytes, bit for bit, or the same error; and the values to compare them on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tritgguf.converter import TensorError
from tritgguf.converter.core import kernels, tensors
from tritgguf.converter.core.floats import checked
from tritgguf.converter.core.tensors import CodedRows, Floats

examples = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@contextmanager
def computed_by(how: str) -> Iterator[None]:
    before = os.environ.get(kernels.VARIABLE)
    os.environ[kernels.VARIABLE] = how
    try:
        yield
    finally:
        if before is None:
            del os.environ[kernels.VARIABLE]
        else:
            os.environ[kernels.VARIABLE] = before


def assert_same(function: Callable[[], Any]) -> None:
    """Assert that a function returns the same arrays, bit for bit, or the same error, with kernels and with numpy."""
    _compare(_result(function, "numpy"), _result(function, "compiled"))


def _result(function: Callable[[], Any], how: str) -> list[Any]:
    with computed_by(how):
        try:
            return _flat(function())
        except TensorError as error:
            return [str(error)]


def _compare(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, np.ndarray):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()
        else:
            assert one == other


def _flat(result: object) -> list[Any]:
    if isinstance(result, CodedRows):
        return [result.codes, result.scales, result.group]
    return list(result) if isinstance(result, tuple) else [result]


@st.composite
def rows(draw: st.DrawFn, n_columns: int = 512) -> np.ndarray:
    """Float32 rows of many kinds: usual weights, few levels, many magnitudes, zeros, bf16 values, ties."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(1, 4)), n_columns)
    scales = rng.uniform(0.1, 1, (shape[0], -(-n_columns // 256)))
    kind = draw(st.sampled_from(["normal", "heavy", "levels", "ternary", "magnitudes", "tiny", "huge", "zeros"]))
    values = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy": lambda: rng.standard_t(1.5, shape),
        "levels": lambda: rng.integers(-4, 5, shape) * 0.5,
        "ternary": lambda: rng.integers(-1, 2, shape) * np.repeat(scales, 256, axis=1)[:, :n_columns],
        "magnitudes": lambda: rng.standard_normal(shape) * np.exp(rng.uniform(-60, 60, shape)),
        "tiny": lambda: rng.standard_normal(shape) * 1e-41,
        "huge": lambda: rng.uniform(-3e38, 3e38, shape),
        "zeros": lambda: rng.standard_normal(shape) * (rng.random(shape) < 0.02),
    }[kind]()
    with np.errstate(over="ignore"):
        floats = np.clip(values, -3.3e38, 3.3e38).astype(np.float32)
    if draw(st.booleans()):
        floats = (floats.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return floats


def stored(values: np.ndarray, dtype: str) -> Floats:
    """Return values as a file might hold them; fp16 ends at 65504."""
    if dtype == "F32":
        return Floats.of(values)
    if dtype == "BF16":
        return Floats((values.view(np.uint32) >> 16).astype(np.uint16), dtype)
    return Floats(np.clip(values, -65504, 65504).astype(np.float16).view(np.uint16), dtype)


DTYPES = st.sampled_from(["BF16", "F16", "F32"])


class Rows(tensors.SourceTensor):
    """Rows in memory."""

    name = "w"

    def __init__(self, values: np.ndarray, dtype: str) -> None:
        self.stored, self.dtype, self.shape = stored(values, dtype), dtype, values.shape

    @property
    def n_bytes(self) -> int:
        return self.stored.words.nbytes

    def floats(self, rows):
        return Floats(self.stored.words[rows], self.dtype)

    def read(self, rows):
        return checked(self.floats(rows))[0]


LEVELS = (1, 3, 4)  # of processors; native/generic.c tells which one this is


@contextmanager
def at_level(level: int) -> Iterator[None]:
    """Run the kernels of one processor level."""
    library, call = kernels.library(), kernels.Kernel.__call__
    assert library is not None

    class OfLevel:
        def __getitem__(self, name: str) -> Any:
            return library[f"{name.rpartition('_')[0]}_{level}"]

        def level(self) -> int:
            return level

    def call_anew(kernel: kernels.Kernel, *arguments: kernels.Argument) -> int | None:
        kernel.function = None  # which it keeps from call to call
        try:
            return call(kernel, *arguments)
        finally:
            kernel.function = None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "library", OfLevel)
        patch.setattr(kernels.Kernel, "__call__", call_anew)
        yield


def assert_same_at_each_level(function: Callable[[], Any]) -> None:
    """Assert the same with the kernels of every level that this processor has."""
    library, by_numpy = kernels.library(), _result(function, "numpy")
    assert library is not None
    for level in LEVELS:
        if level <= library.level():
            with at_level(level):
                _compare(by_numpy, _result(function, "compiled"))

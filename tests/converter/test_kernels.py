"""Kernels against numpy: the same bytes, bit for bit, whatever the values, the threads and the chunks."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import checkpoints, packed_checkpoints
from tritgguf.converter import TensorError, UnsupportedError, convert, kernels, tensors, writer
from tritgguf.converter.checkpoint import open_checkpoint
from tritgguf.converter.codec import TernaryCodec, codecs
from tritgguf.converter.codecs.q2_0 import CODEC as Q2_0
from tritgguf.converter.codecs.tq2_0 import CODEC as TQ2_0
from tritgguf.converter.floats import narrowed, widened
from tritgguf.converter.grids import code_on_grid, find_grid
from tritgguf.converter.method import methods
from tritgguf.converter.methods.absmean import mean_magnitudes
from tritgguf.converter.methods.mse import best_scales
from tritgguf.converter.tensors import CodedRows

TERNARY = [codec for codec in codecs().values() if isinstance(codec, TernaryCodec)]
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
    found = []
    for how in ("numpy", "compiled"):
        with computed_by(how):
            try:
                found.append(function())
            except TensorError as error:
                found.append(str(error))
    ours, theirs = (_flat(result) for result in found)
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
    kind = draw(st.sampled_from(["normal", "heavy", "levels", "ternary", "magnitudes", "tiny", "huge", "zeros"]))
    values = {
        "normal": lambda: rng.standard_normal(shape),
        "heavy": lambda: rng.standard_t(1.5, shape),
        "levels": lambda: rng.integers(-4, 5, shape) * 0.5,
        "ternary": lambda: rng.integers(-1, 2, shape) * np.repeat(rng.uniform(0.1, 1, (shape[0], 2)), 256, axis=1),
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


@pytest.mark.parametrize("group", [32, 64, 256])
@pytest.mark.parametrize("method", methods().values(), ids=lambda method: method.name)
@examples
@given(values=rows())
def test_methods(method, group: int, values: np.ndarray) -> None:
    def coded() -> CodedRows:
        with np.errstate(over="ignore"):
            return method.code(values, group)

    assert_same(coded)


@pytest.mark.parametrize("group", [32, 64, 256])
@pytest.mark.parametrize("scales", [mean_magnitudes, best_scales], ids=["absmean", "mse"])
@examples
@given(values=rows())
def test_scales_before_they_are_rounded(scales, group: int, values: np.ndarray) -> None:
    def found() -> np.ndarray:
        with np.errstate(over="ignore"):
            return scales(values.reshape(-1, group))

    assert_same(found)


@pytest.mark.parametrize("codec", TERNARY, ids=lambda codec: codec.name)
@examples
@given(seed=seeds, n_rows=st.integers(1, 3), n_blocks=st.integers(1, 3))
def test_ternary_codecs(codec: TernaryCodec, seed: int, n_rows: int, n_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-1, 2, (n_rows, n_blocks * codec.block)).astype(np.int8)
    scales = rng.uniform(0, 1, (n_rows, n_blocks)).astype(np.float16).astype(np.float32)
    coded = CodedRows(codes, scales, codec.block)
    assert_same(lambda: codec.pack(coded))
    assert_same(lambda: codec.unpack(codec.pack(coded)))
    assert_same(coded.dequantize)
    damaged = rng.integers(0, 256, (n_rows, n_blocks * codec.block_bytes), np.uint8)
    assert_same(lambda: codec.unpack(damaged))


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
@pytest.mark.parametrize("byte", [0, 31, 32, 63])
def test_one_invalid_code_is_refused(byte: int, shift: int) -> None:
    stored = TQ2_0.pack(CodedRows(np.zeros((2, 512), np.int8), np.ones((2, 2), np.float32), 256))
    stored[1, 66 + byte] |= 3 << shift
    with computed_by("compiled"), pytest.raises(TensorError, match="code 3"):
        TQ2_0.unpack(stored)


@examples
@given(seed=seeds)
def test_q2_0_with_negative_scales(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored = Q2_0.pack(CodedRows(rng.integers(-1, 2, (2, 128)).astype(np.int8), np.ones((2, 2), np.float32), 64))
    stored.reshape(2, 2, 18)[:, :, 1] ^= rng.integers(0, 2, (2, 2), np.uint8) * 0x80
    assert_same(lambda: Q2_0.unpack(stored))


@pytest.mark.parametrize(("dtype", "kind"), [("BF16", "<u2"), ("F16", "<u2")])
def test_every_16_bit_float_is_widened_the_same(dtype: str, kind: str) -> None:
    words = np.arange(1 << 16, dtype=kind).reshape(256, 256)
    limit = {"BF16": 0x7F80, "F16": 0x7C00}[dtype]
    finite = words[(words & 0x7FFF).max(axis=1) < limit]
    assert_same(lambda: widened(finite, dtype))
    with computed_by("compiled"):
        for word in (limit, limit + 1, limit | 0x8000, 0xFFFF):
            assert widened(np.array([0, word, 1], kind), dtype)[1] is False
        for word in (limit - 1, limit - 1 | 0x8000):
            assert widened(np.array([0, word, 1], kind), dtype)[1] is True


@examples
@given(values=rows(), place=st.integers(0, 511), word=st.sampled_from([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF]))
def test_float32_is_read_the_same(values: np.ndarray, place: int, word: int) -> None:
    words = values.view(np.uint32).copy()
    assert_same(lambda: widened(words, "F32"))
    words[0, place] = word
    assert_same(lambda: widened(words, "F32"))


@examples
@given(values=rows(), power=st.integers(-30, 20))
def test_float16_is_rounded_the_same(values: np.ndarray, power: int) -> None:
    near = values / max(float(np.abs(values).max()), 1e-30) * np.float32(2.0) ** power
    assert_same(lambda: narrowed(np.clip(near, -65504, 65504).astype(np.float32)))


def test_halfway_between_fp16_values_and_at_its_ends() -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    values = np.concatenate([halves, between, np.nextafter(between, 0), np.nextafter(between, np.float32(np.inf))])
    assert_same(lambda: narrowed(np.concatenate([values, -values])))
    for value in (65504.0, 65519.9, 65520.0, 3e38):
        assert_same(lambda value=value: narrowed(np.array([1.0, -value], np.float32))[1])


@examples
@given(values=rows(), group=st.sampled_from([32, 64, 256]))
def test_codes_on_a_grid(values: np.ndarray, group: int) -> None:
    assert_same(lambda: code_on_grid(values, group))


@pytest.mark.parametrize(
    ("name", "byte", "message"),
    [("falcon3", 0b11, "code 3"), ("14b-seed", 81, "byte 81"), ("14b-padded", 255, "byte 255")],
)
def test_damaged_packings_are_refused(name: str, byte: int, message: str, tmp_path: Path) -> None:
    folder = source(name, tmp_path / "model")
    opened = open_checkpoint(folder).tensors
    assert opened is not None
    tensor = next(t for t in opened.values() if isinstance(t, tensors.CodedTensor))
    assert_same(lambda: tensor.read_codes(np.arange(tensor.shape[0])[::-1]))
    data = tensor.stored.data.copy()
    data[len(data) // 2] = byte
    damaged = replace(tensor, stored=replace(tensor.stored, data=data))
    for how in ("numpy", "compiled"):
        with computed_by(how), pytest.raises(TensorError, match=message):
            damaged.read_codes(slice(None))


class Rows(tensors.SourceTensor):
    """Float rows in memory."""

    name, dtype = "w", "F32"

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    @property
    def n_bytes(self) -> int:
        return self.values.nbytes

    def read(self, rows):
        return self.values[rows]


@examples
@given(
    seed=seeds,
    extent=st.sampled_from([1, 16, 32, 128, 256, 1024]),
    n_strays=st.sampled_from([0, 0, 1, 40, 3000]),
    first=st.booleans(),
)
def test_grids_are_found_the_same(seed: int, extent: int, n_strays: int, first: bool) -> None:
    rng = np.random.default_rng(seed)
    scales = np.repeat(rng.uniform(0.5, 1, (300, 1024 // max(extent, 16))), max(extent, 16), axis=1)
    values = (rng.integers(-1, 2, (300, 1024)) * (scales if extent > 1 else 0.3)).astype(np.float32)
    values[:: 1 if first else 100].flat[rng.integers(0, 1024 * 3, n_strays)] *= np.float32(0.7)
    assert_same(lambda: find_grid(Rows(values)))


CONVERSIONS = {
    "floats, mse": ("llama-gqa", {"type": "tq2_0", "method": "mse"}),
    "floats, absmean": ("qwen2", {"type": "tq1_0", "method": "absmean"}),
    "floats as f16": ("llama-llama3", {"type": "f16"}),
    "bitnet packing": ("falcon3", {}),
    "bitnet packing, a scale per row": ("llama-rows", {"type": "q2_k", "allow_lossy": True}),
    "bitnet masters": ("2b4t-online", {"type": "q4_0"}),
    "base-3 packing": ("14b-seed", {"type": "q2_0"}),
    "base-3 packing with padding": ("14b-padded", {"type": "q4_0"}),
    "grid of 128": ("bonsai", {"type": "q2_0"}),
}


def source(name: str, folder: Path) -> Path:
    build_it = packed_checkpoints.build if name in packed_checkpoints.PACKED else checkpoints.build
    return build_it(name, folder)


@pytest.mark.parametrize("name", CONVERSIONS)
def test_a_file_is_the_same_whatever_made_it(name: str, tmp_path: Path, monkeypatch) -> None:
    checkpoint, options = CONVERSIONS[name]
    folder = source(checkpoint, tmp_path / "model")
    found = {}
    for how in ("numpy", "compiled"):
        for chunk, piece, threads in ((1 << 17, 1 << 21, 1), (1, 1, 3), (3000, 20_000, 2), (1 << 14, 1 << 14, 5)):
            monkeypatch.setattr(tensors, "CHUNK_VALUES", chunk)
            monkeypatch.setattr(writer, "PIECE_VALUES", piece)
            with computed_by(how):
                out = tmp_path / "out.gguf"
                convert(folder, out, threads=threads, check=False, force=True, **options)
            found[how, chunk, threads] = hashlib.sha256(out.read_bytes()).hexdigest()
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("kind", ["tq1_0", "tq2_0", "q2_0"])
def test_a_gguf_source_is_read_the_same(kind: str, tmp_path: Path) -> None:
    folder = source("falcon3", tmp_path / "model")
    first = convert(folder, tmp_path / "first.gguf", kind, check=False).out
    found = []
    for how in ("numpy", "compiled"):
        with computed_by(how):
            found.append(convert(first, tmp_path / f"{how}.gguf", "q4_0", check=False).out.read_bytes())
    assert found[0] == found[1]


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


USE = """
import numpy as np, sys
from tritgguf.converter import kernels
from tritgguf.converter.method import method_named
coded = method_named("mse").code(np.ones((2, 256), np.float32), 256)
"""


def test_a_small_model_never_waits_for_the_compiler(tmp_path: Path) -> None:
    folder = checkpoints.build("llama-gqa", tmp_path / "model")
    code = f"from tritgguf.converter import plan; plan({str(folder)!r}, 'tq2_0')"
    code += "\nimport sys; print('numba' in sys.modules)"
    assert run(code, TRITGGUF_KERNELS="auto") == "False"


def test_a_large_model_gets_kernels_while_numpy_works() -> None:
    code = (
        USE
        + """
import time
kernels.prepare(kernels.WORTH_BYTES)
deadline = time.monotonic() + 120
from tritgguf.converter.methods.mse import BEST
while BEST.compiled is None and time.monotonic() < deadline:
    method_named("mse").code(np.ones((2, 256), np.float32), 256)
    time.sleep(0.01)
print(BEST.compiled is not None)
"""
    )
    assert run(code, TRITGGUF_KERNELS="auto") == "True"


def test_without_numba_numpy_does_the_work() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        + USE
        + """
kernels.prepare(kernels.WORTH_BYTES)
for _ in range(3):
    coded = method_named("mse").code(np.ones((2, 256), np.float32), 256)
print((coded.codes == 1).all())
"""
    )
    assert run(code, TRITGGUF_KERNELS="auto") == "True"


def test_a_kernel_that_was_insisted_on_must_be_there() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\ntry:\n    "
        + USE.replace("\n", "\n    ")
        + """
except ImportError as error:
    print("no", error.name)
"""
    )
    assert run(code, TRITGGUF_KERNELS="compiled") == "no numba"


def test_an_unwritable_cache_is_no_obstacle(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.write_text("a file, where a folder would have to be")
    assert (
        run(USE + "print((coded.codes == 1).all())", TRITGGUF_KERNELS="compiled", NUMBA_CACHE_DIR=str(nowhere))
        == "True"
    )


def test_another_word_in_the_variable_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "fast")
    with pytest.raises(UnsupportedError, match="TRITGGUF_KERNELS is 'fast'; expected one of auto, numpy, compiled"):
        kernels.mode()

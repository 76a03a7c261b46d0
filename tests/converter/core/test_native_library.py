"""The library of kernels: built, found, of every level that the processor has, and done without."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tritgguf.converter import UnsupportedError
from tritgguf.converter.core import kernels


def run(code: str, **variables: str) -> str:
    environment = {**os.environ, **variables}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


CODED = """
import numpy as np
from tritgguf.converter import UnsupportedError
from tritgguf.converter.core import kernels
from tritgguf.converter.quant.method import method_named
from tritgguf.converter.core.tensors import Floats

def coded():
    return method_named("mse").quantize(Floats.of(np.ones((2, 256), np.float32)), 256).codes
"""


def test_the_kernels_are_built_wherever_the_tests_run() -> None:
    assert kernels.library() is not None


def test_every_processor_here_has_its_kernels() -> None:
    """The library holds each kernel for the levels up to this processor's, the same bytes from each."""
    found = kernels.library()
    assert found is not None
    values = np.random.default_rng(5).standard_normal((64, 512)).astype(np.float32)
    expected = None
    for level in (level for level in (1, 3, 4) if level <= found.level()):
        codes, scales = np.empty(values.shape, np.int8), np.empty((64, 2), np.float32)
        function = getattr(found, f"mse_{level}")
        function.argtypes = kernels.Kernel("mse", "words", int, int, int, np.int8, np.float32).argtypes
        function(values.ctypes.data, kernels.KINDS.index("F32"), 128, 256, codes.ctypes.data, scales.ctypes.data)
        expected = expected or (codes.tobytes(), scales.tobytes())
        assert (codes.tobytes(), scales.tobytes()) == expected, level


def test_without_the_library_numpy_does_the_work() -> None:
    code = CODED + "kernels.library = lambda: None\nprint((coded() == 1).all())"
    assert run(code, TRITGGUF_KERNELS="auto") == "True"


def test_kernels_that_were_insisted_on_must_be_there() -> None:
    code = (
        CODED
        + """
kernels.library = lambda: None
try:
    coded()
except UnsupportedError as error:
    print(error)
"""
    )
    assert run(code, TRITGGUF_KERNELS="compiled").startswith(
        "TRITGGUF_KERNELS is compiled, but the kernels are missing"
    )


def test_a_library_older_than_its_source_is_not_used(tmp_path: Path, monkeypatch) -> None:
    built = Path(kernels.__file__).with_name(kernels.FILE)
    (tmp_path / "native").mkdir()
    source = tmp_path / "native" / "loops.h"
    source.write_text("newer")
    (tmp_path / built.name).write_bytes(built.read_bytes())
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    for age, usable in ((-10, False), (10, True)):
        os.utime(tmp_path / built.name, (1e9 + age, 1e9 + age))
        os.utime(source, (1e9, 1e9))
        assert (kernels.library.__wrapped__() is not None) is usable


def test_an_array_of_another_type_is_refused(monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "compiled")
    kernel = kernels.Kernel("fp16_error", np.float32, int, np.float32)
    with pytest.raises(TypeError, match="fp16_error: found an array of float64, expected a contiguous one of float32"):
        kernel(np.zeros(4), 4, np.zeros(1, np.float32))
    with pytest.raises(TypeError, match="expected a contiguous one"):
        kernel(np.zeros(8, np.float32)[::2], 4, np.zeros(1, np.float32))


def test_kernels_of_one_name_keep_their_own_argument_types(monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "compiled")
    right = kernels.Kernel("fp16_error", np.float32, int, np.float32)
    right(np.ones(4, np.float32), 4, np.zeros(1, np.float32))
    with pytest.raises(TypeError):
        kernels.Kernel("fp16_error", np.float32, int)(np.ones(4), 4)
    assert right.function.argtypes == right.argtypes


def test_another_word_in_the_variable_is_an_error(monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "fast")
    with pytest.raises(UnsupportedError, match="TRITGGUF_KERNELS is 'fast'; expected one of auto, numpy, compiled"):
        kernels.mode()

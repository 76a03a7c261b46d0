"""The instruction sets of Arm, emulated by QEMU: the same bits as this processor's."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.once import once
from tests.runtime.engine.kernels.product_library import NATIVE, SOURCES, ProductLibrary
from tests.runtime.engine.kernels.test_products import BLOCKS, every_type, random_activations, random_weights

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ("-std=c++17", "-O2", "-static", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("compares with the kernels of x86")
    for tool in (COMPILER, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} isn't installed")
    main = Path(__file__).with_name("product_program.cpp")
    command = [COMPILER, *FLAGS, f"-I{NATIVE}", *SOURCES, main, "-o"]
    return once(tmp_path_factory, "arm_product", lambda path: subprocess.run([*command, path], check=True))


@every_type
@pytest.mark.parametrize("instructions", ["neon-dotprod", "neon-i8mm"])
def test_same_bits_as_on_x86(
    type_number: int, instructions: str, program: Path, product_library: ProductLibrary
) -> None:
    rng = np.random.default_rng(8)
    for n_blocks, n_rows, n_columns in ((1, 1, 1), (5, 21, 1), (9, 37, 11), (3, 16, 4), (20, 9, 8), (2, 70, 2)):
        n_inputs = n_blocks * BLOCKS[type_number][0]
        weights = random_weights(type_number, n_inputs, n_rows, rng)
        activations = random_activations(n_columns, n_inputs, rng)
        numbers = np.array([type_number, n_inputs, n_rows, n_columns, weights.shape[1]], np.int64)
        request = instructions.encode().ljust(16, b"\0") + numbers.tobytes() + weights.tobytes() + activations.tobytes()
        answer = subprocess.run(
            [EMULATOR, "-cpu", "max", program], input=request, stdout=subprocess.PIPE, check=True, env=dict(os.environ)
        )
        expected = product_library.multiply(type_number, weights, activations)
        assert answer.stdout == expected.tobytes()

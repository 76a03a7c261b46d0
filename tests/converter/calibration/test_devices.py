"""gptq's and tuning's work for a GPU, on devices where no operation may mix it with what is on the CPU.

One is torch's own without memory. The other has values, so that a whole conversion runs on it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import checkpoints, gguf_weights
from tests.paths import ROOT
from tritgguf.converter.model.open import open_model

torch = pytest.importorskip("torch", reason="needs the ptq extra")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from tritgguf.converter.calibration import affine, gptq  # noqa: E402 (it imports torch)
from tritgguf.converter.calibration.blocks import Block, Decoder  # noqa: E402
from tritgguf.converter.calibration.moments import Group, Moments, Sums  # noqa: E402

IDS = np.arange(512, dtype=np.int64)[None] * 7 % 300
N_COLUMNS = 512
META = torch.device("meta")
TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as CUDA does; numbers and copies may come from the CPU."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if len({tensor.device for tensor in tensors}) > 1 and not copies:
            raise RuntimeError(f"{function} of two devices")
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_device() -> Iterator[None]:
    with OneDevice():
        yield


@pytest.fixture
def moments() -> Moments:
    square = torch.empty(N_COLUMNS, N_COLUMNS, device=META)
    return Moments(square, square, None)


def test_mixing_is_refused(moments: Moments) -> None:
    with pytest.raises(RuntimeError, match=r"of two devices"):
        gptq.damped(torch.eye(N_COLUMNS), 0.1) @ moments.hessian


@pytest.mark.parametrize(("group", "highest"), [(256, 1), (64, 2)])
def test_codes_and_scales_are_where_the_weights_are(moments: Moments, group: int, highest: int) -> None:
    weights, hessian = torch.empty(8, N_COLUMNS, device=META), gptq.damped(moments.hessian, 0.1)
    corrected = gptq.corrected(weights, hessian, moments.pull(weights))
    found = gptq.quantized(corrected, hessian, group, highest, feedback=True, refitted=True, descent=True)
    assert [tensor.device for tensor in found] == [META, META]


def test_grids_are_where_the_weights_are(moments: Moments) -> None:
    weights = torch.empty(8, N_COLUMNS, device=META)
    grids = affine.fit_grids(weights, moments.hessian.diagonal())
    codes = gptq.feed_back(grids.moved(weights), moments.hessian, grids.steps, affine.GROUP, affine.FOUR)
    refitted = affine.refit(weights, codes, grids, moments.hessian)
    assert {tensor.device for tensor in vars(refitted).values()} == {META}


@pytest.mark.parametrize("name", ["llama-biases", "mistral-window", "qwen3", "phi3"])
def test_blocks_and_their_moments_are_on_the_decoder_s_device(name: str, tmp_path: Path) -> None:
    model = open_model(checkpoints.build(name, tmp_path / "model"))
    assert model.tensors is not None
    decoder = Decoder(model.path, model.specs, model.tensors, META)
    stream = decoder.embedded(IDS)
    assert stream.device.type == "cpu"
    block: Block = decoder.block(0)
    linear = [name for name, module in block.module.named_modules() if isinstance(module, torch.nn.Linear)]
    attention_output, down = linear.index("self_attn.o_proj"), linear.index("mlp.down_proj")
    for group in (
        Group((linear[0],), adds=False, earlier=()),
        Group((linear[attention_output],), adds=True, earlier=()),
        Group((linear[down],), adds=True, earlier=(linear[attention_output],)),
    ):
        sums = Sums(group, correction=True, token_weights=True)
        sums.add(block, block, stream.to(META), stream.to(META))
        found = sums.moments()
        means = (found.hessian, found.behind if group.adds else found.drift)
        assert [mean.device for mean in means if mean is not None] == [META, META]


def test_a_gpu_makes_of_a_model_what_the_cpu_makes(tmp_path: Path) -> None:
    model = checkpoints.build("llama-gqa", tmp_path / "model")
    command = [sys.executable, "-m", "tests.converter.calibration.simulated_gpu", *map(str, (model, TEXT, tmp_path))]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    told = ran.stdout.splitlines()
    assert [line.split()[-1] for line in told if line.startswith("tuning on")] == ["simulated", "simulated", "cpu"]
    n_lines = len(told) // 3
    on_cpu = told[-n_lines:]
    assert [line.replace("simulated", "cpu") for line in told] == 3 * on_cpu
    expected = gguf_weights.read(tmp_path / "cpu.gguf")
    for name in ("gpu.gguf", "gpu-that-cannot-solve.gguf"):
        found = gguf_weights.read(tmp_path / name)
        for tensor, values in expected.items():
            np.testing.assert_allclose(found[tensor], values, rtol=2e-3, atol=1e-6, err_msg=f"{name}: {tensor}")

"""Packed weights with groups of any size: stored exactly where the plan says so, whatever blocks the type has."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests import packed_checkpoints
from tests.packed_checkpoints import Floats
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TensorError
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.planning.choose_types import choose_type
from tritgguf.converter.planning.file_plan import TensorPlan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.targets import TARGETS
from tritgguf.converter.quant.codec import ternary_codecs

KEY, N_ROWS = "w.weight", 8
# Neighbouring groups with the same scale: as many columns of them, or a whole row.
GROUPS = (4, 12, 20, 32, 48, 64, 96, 144, 160, 256, 320)
EQUAL = (1, 64, 192, 256, 768)


def base3(folder: Path, group: int, equal: int, zero: str = "") -> tuple[SourceTensor, Floats]:
    """Return a tensor of base-3 packing, read from a file, and its weights.

    `zero` is "" or what is zero in some groups: "codes and scales", or only their "scales".
    """
    rng = np.random.default_rng([group, equal])
    n_columns = math.lcm(group, equal, 256)
    trits = rng.integers(-1, 2, (N_ROWS, n_columns)).astype(np.int8)
    steps = rng.integers(1, 64, (N_ROWS, n_columns // math.lcm(group, equal))).astype(np.float32) / 512
    scales = np.repeat(steps, math.lcm(group, equal) // group, axis=1)
    if zero:
        scales[::3, ::3] = 0
        if "codes" in zero:
            trits *= np.repeat(scales != 0, group, axis=1)
    digits = packed_checkpoints.pack_base3(trits)
    stored = {KEY: ("U8", digits.shape, digits.tobytes()), f"{KEY}.scales": packed_checkpoints.floats(scales, "F32")}
    packed_checkpoints.write_tensors(folder, stored)
    packing, tensors = read_packing({}, read_tensors(folder), linear={KEY})
    assert packing == "base-3 packing"
    return tensors[KEY], trits * np.repeat(scales, group, axis=1)


def assert_exact(plan: TensorPlan, source: SourceTensor, weights: Floats) -> None:
    assert plan.exact, plan.reason
    found = plan.codec.decode(plan.encoder.encode(source, slice(None)))
    np.testing.assert_array_equal(found, weights, err_msg=f"{plan.codec.name}: {plan.reason}")


@pytest.mark.parametrize("zero", ["", "codes and scales", "scales"])
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_size_is_stored_exactly_or_refused(group: int, zero: str, tmp_path: Path) -> None:
    for equal in EQUAL:
        source, weights = base3(tmp_path, group, equal, zero)
        spec = TensorSpec(KEY, "blk.0.attn_q.weight", source.shape, "linear")
        for target in TARGETS:
            assert_exact(choose_type(spec, source, Request.named("auto", "absmean", target=target)), source, weights)
        wide = math.lcm(group, 1 if zero == "scales" else equal)  # so many columns share a scale
        for name, codec in ternary_codecs().items():
            if wide % codec.block == 0:
                assert_exact(choose_type(spec, source, Request.named(name, "absmean")), source, weights)
            elif name == "q2_k" and wide % 32 == 16:  # no type is exact, and Q2_K's scales are fitted to the codes
                assert not choose_type(spec, source, Request.named(name, "absmean")).exact
            else:
                with pytest.raises(TensorError, match=rf"{name} can't hold"):
                    choose_type(spec, source, Request.named(name, "absmean"))

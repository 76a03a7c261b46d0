"""Checkpoints packed as GPTQ, AutoRound and MLX: the file holds their weights, and the runtime computes with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime as rt
from tests import gguf_weights, packed_checkpoints, quantized_checkpoints
from tests.quantized_checkpoints import QUANTIZED, Quantized, weights
from tests.quantized_layers import Layer
from tritgguf.converter import convert, form_named, plan, quantize
from tritgguf.converter.checkpoint import packed_integers
from tritgguf.converter.checkpoint.packed_integers import FourLevelTensor, IntegerTensor
from tritgguf.converter.core.tensors import row_chunks
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.model.open import open_model
from tritgguf.converter.verification.verification import verify

FP16_ROUNDING = 2.0**-11
BLOCKS = {"q2_0": 64}
WIDE = ("gptq-zeros", "gptq-4-bits", "mlx-4-bits")  # every layer is read as floats
MIXED = ("gptq-v2", "auto-round", "mlx-auto-round")  # some layers are
ROUNDED = ("gptq-4-bits",)  # scales of 11 bits times integers of 4


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a checkpoint, for reading only."""
    root = tmp_path_factory.mktemp("quantized")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else quantized_checkpoints.build(name, root / name)

    return folder


def fits(name: str, type_name: str) -> bool:
    """Whether blocks of the type lie within the groups of every layer."""
    group = QUANTIZED[name].layer.group
    return name not in (*WIDE, *MIXED) and (group == -1 or group % BLOCKS[type_name] == 0)


CASES = [(name, type_name) for name in QUANTIZED for type_name in ("auto", "f16", "q2_0")]


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case[1] not in BLOCKS or fits(*case)])
def test_the_file_holds_what_the_model_computes_with(name: str, kind: str, quantized, tmp_path: Path) -> None:
    planned = convert(quantized(name), tmp_path / "out.gguf", type=kind, check=False).plan
    found, expected = gguf_weights.read(tmp_path / "out.gguf"), weights(name)
    gguf_weights.assert_same(found, expected, FP16_ROUNDING if name in (*ROUNDED, "auto-round") else 0)
    for tensor in planned.tensors:
        error = gguf_weights.relative_error(found[tensor.spec.source], expected[tensor.spec.source])
        assert tensor.exact == (error == 0), tensor.reason
        if not tensor.exact:
            assert "are rounded" in tensor.reason


@pytest.mark.parametrize(
    ("name", "target", "kinds"),
    [
        ("gptq", "cuda", {"q2_0"}),
        ("gptq", "ollama", {"q4_0"}),
        ("gptq-v2", "cuda", {"q2_0", "f16"}),
        ("gptq-rows", "ollama", {"q2_k"}),
        ("gptq-ternary", "metal", {"tq2_0"}),
        ("auto-round", "vulkan", {"q2_0", "f16"}),
        ("mlx-bonsai", "cuda", {"q2_0"}),
        ("mlx-auto-round", "metal", {"q2_0", "f16"}),
        ("gptq-4-bits", "cuda", {"f16"}),
    ],
)
def test_auto_takes_the_smallest_type_that_fits(name: str, target: str, kinds: set[str], quantized) -> None:
    planned = plan(quantized(name), target=target)
    assert {tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear"} == kinds


@pytest.mark.parametrize("name", ["mlx-bonsai", "gptq-4-bits"])
def test_verify_compares_with_the_packed_weights(name: str, quantized, tmp_path: Path) -> None:
    convert(quantized(name), tmp_path / "out.gguf", check=False)
    found = verify(quantized(name), tmp_path / "out.gguf")
    assert not found.problems
    assert {check.verdict for check in found.tensors} == ({"exact", "rounded"} if name in ROUNDED else {"exact"})
    with pytest.MonkeyPatch.context() as patch:
        flipped_scales(patch)
        assert verify(quantized(name), tmp_path / "out.gguf").problems


def test_three_codes_are_ternary_whatever_the_signs_of_scales(quantized, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    assert all(
        tensor.exact for tensor in convert(quantized("gptq-ternary"), out, "tq2_0", check=False).plan.tensors[:5]
    )
    gguf_weights.assert_same(gguf_weights.read(out), weights("gptq-ternary"), 0)


def test_inspect_names_width_and_packing(quantized) -> None:
    found = inspect(quantized("gptq-v2"))
    assert {fact.dtype for fact in found.tensors} == {"2-bit GPTQ", "4-bit GPTQ", "F16"}
    assert found.tensors[1].grid is not None or found.tensors[2].grid is not None


def test_packed_embeddings_keep_their_codes_where_asked(quantized, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    convert(quantized("mlx-bonsai"), out, "q2_0", embedding_type="q2_0", check=False)
    assert gguf_weights.types(out)["token_embd.weight"] == "q2_0"
    gguf_weights.assert_same(gguf_weights.read(out), weights("mlx-bonsai"), 0)
    found = gguf_weights.read(out)["model.embed_tokens.weight"]
    np.testing.assert_array_equal(found, weights("mlx-bonsai")["model.embed_tokens.weight"])


def test_quantize_writes_floats_without_the_packing_s_keys(quantized, tmp_path: Path) -> None:
    for name in ("gptq", "gptq-4-bits", "mlx-bonsai"):
        out = tmp_path / name
        quantize(quantized(name), out, form_named(None))
        keys = packed_checkpoints.read_config(out)
        assert not {"quantization", "quantization_config"} & keys.keys()
        convert(out, tmp_path / "again.gguf", "f16", check=False, force=True)
        found = gguf_weights.read(tmp_path / "again.gguf")
        gguf_weights.assert_same(found, weights(name), FP16_ROUNDING if name in ROUNDED else 0)


# --- the runtime -------------------------------------------------------------------------------------------------

# Activations in 8 bits cost about 2e-2; wrong zero points, signs or groups more than half of the norm.
RELATIVE_ERROR, WRONG = 5e-2, 0.3


def logits(file: Path) -> NDArray[np.float32]:
    ids = np.random.default_rng(7).integers(0, 300, 48).tolist()
    with rt.open(file, n_ctx=len(ids)) as session:
        return session.logits(ids)


def distance(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["gptq", "auto-round", "mlx-bonsai"])
def test_the_runtime_computes_what_it_does_with_plain_floats(name: str, quantized, tmp_path: Path) -> None:
    floats, out, wrong = (tmp_path / f"{stem}.gguf" for stem in ("floats", "out", "wrong"))
    convert(quantized_checkpoints.build_floats(name, tmp_path / "floats"), floats, "f16", check=False)
    convert(quantized(name), out, target="cpu", check=False)
    expected = logits(floats)
    assert distance(logits(out), expected) < RELATIVE_ERROR
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS["order of groups"](patch)
        convert(quantized(name), wrong, target="cpu", check=False)
    assert distance(logits(wrong), expected) > WRONG


# --- wrong rules -------------------------------------------------------------------------------------------------


def flipped_scales(patch: pytest.MonkeyPatch) -> None:
    right = packed_integers.Part.floats
    patch.setattr(packed_integers.Part, "floats", lambda self, rows: -right(self, rows))


def wrong_order_of_groups(patch: pytest.MonkeyPatch) -> None:
    right = IntegerTensor.packed_bytes

    def packed_bytes(self: IntegerTensor, rows: Any) -> NDArray[np.uint8]:
        found = right(self, rows)
        return np.ascontiguousarray(np.roll(found, self.group * self.bits // 8 or 1, axis=1)[:, ::-1])

    patch.setattr(IntegerTensor, "packed_bytes", packed_bytes)


def zero_points_swapped(patch: pytest.MonkeyPatch) -> None:
    right = FourLevelTensor._zeros
    patch.setattr(FourLevelTensor, "_zeros", lambda self, rows: np.int8(3) - right(self, rows))


def other_rows(patch: pytest.MonkeyPatch) -> None:
    right = packed_integers.Part.words

    def words(self: packed_integers.Part, rows: Any) -> Any:
        return np.ascontiguousarray(right(self, slice(None))[::-1][rows])

    patch.setattr(packed_integers.Part, "words", words)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "signs": flipped_scales,
    "order of groups": wrong_order_of_groups,
    "zero points": zero_points_swapped,
    "rows": other_rows,
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "auto-round-plain", "mlx-bonsai"])
def test_wrong_rules_are_noticed(name: str, mutant: str, quantized, tmp_path: Path, monkeypatch) -> None:
    MUTANTS[mutant](monkeypatch)
    convert(quantized(name), tmp_path / "out.gguf", check=False)
    with pytest.raises(AssertionError, match="differs by"):
        gguf_weights.assert_same(gguf_weights.read(tmp_path / "out.gguf"), weights(name), FP16_ROUNDING)


# --- groups with zero points of their own ------------------------------------------------------------------------


def test_groups_with_zero_points_1_and_2_share_a_tensor(tmp_path: Path, monkeypatch) -> None:
    layer = Layer(2, 64, symmetric=False, least_zero=1, signed=True)
    mixed = Quantized(quantized_checkpoints.QWEN3, "gptq", layer, quantized_checkpoints.gptq(group_size=64, sym=False))
    right = quantized_checkpoints.quantized_layers.zeros
    monkeypatch.setattr(
        quantized_checkpoints.quantized_layers, "zeros", lambda *arguments: np.minimum(right(*arguments), 2)
    )
    monkeypatch.setitem(QUANTIZED, "mixed", mixed)  # type: ignore[arg-type]
    folder = quantized_checkpoints.build("mixed", tmp_path / "mixed")
    planned = convert(folder, tmp_path / "out.gguf", "q2_0", check=False).plan
    assert all(tensor.exact for tensor in planned.tensors if tensor.spec.role == "linear")
    gguf_weights.assert_same(gguf_weights.read(tmp_path / "out.gguf"), weights("mixed"), 0)


def test_scales_beyond_fp16_are_said_to_be_rounded(tmp_path: Path, monkeypatch) -> None:
    layer = Layer(2, 64, bias_per_scale=-1, dtype="F32", scale_bits=20)
    keys = quantized_checkpoints.mlx(group_size=64)
    monkeypatch.setitem(QUANTIZED, "fine", Quantized(quantized_checkpoints.QWEN3, "mlx", layer, keys))  # type: ignore[arg-type]
    folder = quantized_checkpoints.build("fine", tmp_path / "fine")
    planned = convert(folder, tmp_path / "out.gguf", "q2_0", check=False).plan
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert all(tensor.exact is False and "rounded to fp16" in tensor.reason for tensor in linear)
    gguf_weights.assert_same(gguf_weights.read(tmp_path / "out.gguf"), weights("fine"), FP16_ROUNDING)


@pytest.mark.parametrize("name", QUANTIZED)
def test_chunks_of_rows_give_what_all_rows_do(name: str, quantized) -> None:
    tensors = open_model(quantized(name)).tensors
    assert tensors is not None
    for key, tensor in tensors.items():
        if isinstance(tensor, IntegerTensor):
            parts = []
            for rows in row_chunks(tensor.shape, n_values=7 * tensor.shape[1]):
                tensor.prefetch(rows)
                tensor.read_now(rows)
                parts.append(tensor.read(rows))
                tensor.evict(rows)
            np.testing.assert_array_equal(np.concatenate(parts), weights(name)[key])
            break
    else:
        raise AssertionError("no packed tensor")

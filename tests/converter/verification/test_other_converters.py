"""Files that another program made pass, and what is wrong in them is found."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests import checkpoints
from tests.converter.verification.checks import GATE, UP, Q, bad, unpermuted
from tests.gguf_edit import rewrite
from tests.oracles import libggml
from tritgguf.converter import convert
from tritgguf.converter.core.tensors import Floats
from tritgguf.converter.verification.tensor_check import type_bound
from tritgguf.converter.verification.verification import verify

Folder = Callable[[str], Path]


def foreign(path: Path, out: Path, type_name: str, seed: float = 0.0) -> Path:
    """The F16 file as another program would make it: linear layers quantized by ggml, other keys."""
    kind = GGMLQuantizationType[type_name]
    changes = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith("blk.") and tensor.tensor_type == GGMLQuantizationType.F16:
            changes[tensor.name] = (libggml.quantize(np.array(tensor.data, np.float32), kind), kind)
    keys = {"general.name": "Other", "general.license": "mit", "tokenizer.ggml.add_space_prefix": False}
    keys |= dict.fromkeys(("llama.attention.key_length", "llama.attention.value_length", "llama.vocab_size"))
    return rewrite(path, out, keys=keys, tensors=changes)


@pytest.mark.parametrize(
    ("type_name", "reason"),
    [
        ("Q4_0", "quantized by ggml"),
        ("Q5_1", "quantized by ggml"),
        ("Q8_0", "quantized by q8_0"),
        ("TQ2_0", "quantized by ggml"),
        ("Q3_K", "the error is in the range of Q3_K"),
        ("Q4_K", "the error is in the range of Q4_K"),
        ("Q6_K", "the error is in the range of Q6_K"),
        ("IQ4_NL", "the error is in the range of IQ4_NL"),
    ],
)
def test_another_converter_s_file_passes(
    type_name: str, reason: str, model: Folder, ordinary: Path, tmp_path: Path
) -> None:
    found = verify(model("llama-gqa"), foreign(ordinary, tmp_path / "out.gguf", type_name))
    assert found.problems == []
    assert {check.reason for check in found.tensors if check.type == type_name} == {reason}
    told = " ".join(found.other_keys)
    assert "general.name is 'Other'" in told
    assert "llama.attention.key_length is missing; llama.cpp's default is 64, as expected" in told
    assert "llama.vocab_size is missing; llama.cpp's default is 320" in told


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_wrong_tensors_of_another_converter(type_name: str, model: Folder, ordinary: Path, tmp_path: Path) -> None:
    out = foreign(ordinary, tmp_path / "first.gguf", type_name)
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    changes = {
        Q: (unpermuted(stored[Q][0], 4), stored[Q][1]),
        GATE: stored[UP],
        "blk.0.attn_output.weight": (np.roll(stored["blk.0.attn_output.weight"][0], 1, axis=0), stored[UP][1]),
    }
    found = bad(verify(model("llama-gqa"), rewrite(out, tmp_path / "out.gguf", tensors=changes)))
    assert found.keys() == changes.keys()
    assert found[Q] == "its rows are in the checkpoint's order, but the graph needs another order"
    assert found[GATE] == "it holds the values of model.layers.1.mlp.up_proj.weight"
    assert f"the error is too large for {type_name}" in found["blk.0.attn_output.weight"]


def test_a_tied_output_that_is_written_twice(model: Folder, tmp_path: Path) -> None:
    out = convert(model("llama-tied"), tmp_path / "first.gguf", "tq2_0", check=False).out
    embedding = next(t for t in gguf.GGUFReader(out).tensors if t.name == "token_embd.weight")
    twice = {"output.weight": (np.array(embedding.data), embedding.tensor_type)}
    assert verify(model("llama-tied"), rewrite(out, tmp_path / "twice.gguf", tensors=twice)).problems == []
    other = {"output.weight": (np.array(embedding.data)[::-1], embedding.tensor_type)}
    found = bad(verify(model("llama-tied"), rewrite(out, tmp_path / "other.gguf", tensors=other)))
    assert list(found) == ["output.weight"]


def test_one_tensor_of_another_fine_tune_among_ours(model: Folder, tmp_path: Path) -> None:
    """Ternary rounding loses half of a tensor, which hides much: not that one tensor alone isn't ours."""
    out = convert(model("llama-gqa"), tmp_path / "first.gguf", "tq2_0", check=False).out
    source = checkpoints.weights("llama-gqa")["model.layers.1.mlp.up_proj.weight"]
    noise = np.random.default_rng(5).standard_normal(source.shape, dtype=np.float32) * source.std() * np.float32(0.3)
    other = convert_rows(source + noise)
    found = bad(verify(model("llama-gqa"), rewrite(out, tmp_path / "out.gguf", tensors={UP: other})))
    assert found == {UP: "it isn't the source quantized by mse, but the other tensors are"}


def convert_rows(values: np.ndarray) -> tuple[np.ndarray, GGMLQuantizationType]:
    from tritgguf.converter.quant.codecs.tq2_0 import CODEC
    from tritgguf.converter.quant.methods.mse import METHOD

    return CODEC.pack(METHOD.quantize(Floats.of(values), 256)), GGMLQuantizationType.TQ2_0


def test_bounds_grow_with_fewer_bits_and_never_reach_an_unrelated_tensor() -> None:
    """Measured on Gaussian and on heavy-tailed rows, ggml's own quantizers stay below them."""
    rng = np.random.default_rng(9)
    for rows in (rng.standard_normal((64, 1024)), rng.standard_t(4, (64, 1024))):
        values = rows.astype(np.float32)
        for name in ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q4_1", "IQ4_XS", "Q3_K", "Q2_K"):
            kind = GGMLQuantizationType[name]
            error = libggml.dequantize(libggml.quantize(values, kind), kind) - values
            assert np.linalg.norm(error) / np.linalg.norm(values) < type_bound(kind) <= 0.95, name


@pytest.mark.parametrize("type_name", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize(("kept", "added", "good"), [(0.83, 0.94, True), (2.0, 0.0, False), (0.0, 1.0, False)])
def test_three_codes_that_make_up_for_earlier_layers(
    kept: float, added: float, good: bool, type_name: str, model: Folder, ordinary: Path, tmp_path: Path
) -> None:
    """gptq's targets aren't the source's weights: they may be 1.25 times as large, with a cosine of 0.66."""
    weights = checkpoints.weights("llama-gqa")["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(weights.shape, np.float32) * weights.std()
    kind = GGMLQuantizationType[type_name]
    stored = {"blk.0.ffn_down.weight": (libggml.quantize(kept * weights + added * noise, kind), kind)}
    found = bad(verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", tensors=stored)))
    assert [*found] == ([] if good else [*stored])

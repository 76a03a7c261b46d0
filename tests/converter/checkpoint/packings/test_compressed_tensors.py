"""compressed-tensors, FP8 and humming against what the reference code stores and computes."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tritgguf.runtime as rt
from tests import checkpoints, gguf_weights, packed_checkpoints, paths, tiny_tokenizers
from tests.scaled_checkpoints import QUANTIZED, SMALL, e4m3, weights
from tritgguf.converter import convert
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import TensorError
from tritgguf.converter.export.run import form_named, quantize
from tritgguf.converter.quant.codec import codecs

FOLDER = paths.GOLDEN / "compressed_tensors"
MODELS = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem in QUANTIZED)
MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = f"{MODULE}.weight"
COLUMNS = slice(5, 256, 60)
# Weights with more digits than fp16 has: products in float32. All others are exact.
ROUNDED = ("fp8-blocks", "fp8-bf16-scales")
# The F16 KV cache and F16 activations cost about 5e-4; activations in 8 bits per 32 to 256 values up to 3e-2.
RELATIVE_ERROR, TERNARY_ERROR = 2e-3, 5e-2
SAME_TOP1 = 0.9


@cache
def golden(name: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


LAYERS = sorted({key.rsplit("/", 1)[0] for key in golden("layers") if key.endswith("/config")})


def read(folder: Path, tensors: packed_checkpoints.Stored, quantization: dict[str, Any]) -> SourceTensor:
    """Return what the converter reads of one module where the folder holds these tensors."""
    folder.mkdir()
    packed_checkpoints.write_tensors(folder, tensors)
    _, found = read_packing({"quantization_config": quantization}, read_tensors(folder), linear={WEIGHT})
    assert list(found) == [WEIGHT]
    return found[WEIGHT]


def layer(name: str) -> tuple[packed_checkpoints.Stored, dict[str, Any], np.ndarray]:
    """Return a recorded layer's tensors, its quantization_config, and the weights that the package makes of them."""
    recorded = {key.removeprefix(f"{name}/"): value for key, value in golden("layers").items() if key.startswith(name)}
    config = json.loads(str(recorded["config"]))
    stored = {
        f"{MODULE}.{part}": (dtype, tuple(shape), recorded[f"packed/{part}"].tobytes())
        for part, (dtype, shape) in json.loads(str(recorded["shapes"])).items()
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": config["weights"]}}
    said = {"quant_method": "compressed-tensors", "format": config["format"], "config_groups": groups}
    return stored, said, recorded["weights"]


def test_every_golden_is_used() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == {"layers", "float8", "written", *MODELS}
    assert {name for name in QUANTIZED if not name.startswith("humming")} == set(MODELS)
    assert all(path.stat().st_size < 200_000 for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_read_as_the_package_unpacks_it(name: str, tmp_path: Path) -> None:
    stored, said, expected = layer(name)
    found = read(tmp_path / "model", stored, said)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.read(slice(None)), expected)
    some = np.array([7, 3, 11])
    np.testing.assert_array_equal(found.read(some), expected[some])
    np.testing.assert_array_equal(found.read(slice(5, 9)), expected[5:9])
    assert (found.coded is not None) == name.startswith("words/2/") * name.endswith("/symmetric")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_8_bit_floats_are_those_of_torch(dtype: str, tmp_path: Path) -> None:
    expected = golden("float8")[dtype]
    finite = np.isfinite(expected)
    assert finite.sum() == {"F8_E4M3": 254, "F8_E5M2": 248}[dtype]
    codes = np.arange(256, dtype=np.uint8)[finite]
    packed_checkpoints.write_tensors(tmp_path, {"w": (dtype, (len(codes),), codes.tobytes())})
    (tensor,) = read_tensors(tmp_path).values()
    np.testing.assert_array_equal(tensor.read(slice(None))[0], expected[finite])
    np.testing.assert_array_equal(np.signbit(tensor.read(slice(None))[0]), np.signbit(expected[finite]))
    if dtype == "F8_E4M3":  # what the checkpoints of the tests are made with
        np.testing.assert_array_equal(e4m3(np.arange(256)), expected)
    for byte in np.flatnonzero(~finite):
        packed_checkpoints.write_tensors(tmp_path, {"w": (dtype, (2,), bytes([0, byte]))})
        with pytest.raises(TensorError, match="NaN or Inf values among the rows read, the first at row 0, column 1"):
            read_tensors(tmp_path)["w"].read(slice(None))


@pytest.mark.parametrize(("kind", "block"), [("blocks", [32, 32]), ("cut", [40, 48])])
def test_block_scales_are_those_of_the_references(kind: str, block: list[int], tmp_path: Path) -> None:
    recorded = golden("float8")
    codes, scales = recorded["blocks/codes"], recorded["blocks/scales"]
    stored = {WEIGHT: ("F8_E4M3", codes.shape, codes.tobytes())}
    stored[f"{WEIGHT}_scale_inv"] = packed_checkpoints.floats(scales, "F32")
    found = read(tmp_path / "model", stored, {"quant_method": "fp8", "weight_block_size": block})
    np.testing.assert_array_equal(found.read(slice(None)), recorded[f"{kind}/weights"])
    some = np.array([95, 41, 39, 40])
    np.testing.assert_array_equal(found.read(some), recorded[f"{kind}/weights"][some])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_as_the_reference_reads_it(name: str, model) -> None:
    recorded = golden(name)
    assert checkpoints.digest(model(name)) == str(recorded["checkpoint_sha256"]), "record the goldens again"
    expected = weights(name)
    linear = [key for key in recorded if checkpoints.is_linear(key)]
    assert len(linear) == (6 if name == "gsq-4bit" else 14)
    for key in linear:
        np.testing.assert_array_equal(expected[key][:, COLUMNS], recorded[key])


def test_a_folder_that_the_package_wrote_is_converted_exactly(tmp_path: Path) -> None:
    recorded = golden("written")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(recorded[name].tobytes())
    tiny_tokenizers.write(SMALL.tokenizer, folder)
    planned = convert(folder, tmp_path / "out.gguf", check=False).plan
    found = gguf_weights.read(tmp_path / "out.gguf")
    linear = [key for key in found if checkpoints.is_linear(key)]
    assert len(linear) == 7
    for key in linear:
        np.testing.assert_array_equal(found[key], recorded[key])
    types = Counter(tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear")
    assert types["q4_0"] == 6  # all but k_proj, which config.json ignores


EXPECTED_TYPES = {
    "ct-2bit": {"q2_0": 14},
    "ct-2bit-row": {"q2_0": 14},
    "ct-2bit-tensor": {"q2_0": 14},
    "ct-2bit-asymmetric": {"f16": 14},
    "gsq-4bit": {"q2_0": 6, "bf16": 7, "f16": 1},
    "humming": {"q2_0": 14},
    "humming-4bit": {"f16": 14},
    "fp8-blocks": {"f16": 14},
    "fp8-bf16-scales": {"f16": 14},
}


def require_same(found: dict[str, np.ndarray], name: str) -> set[str]:
    """Raise AssertionError where a weight differs by more than fp16 rounds; return the tensors that it does round."""
    expected = weights(name)
    assert found.keys() == expected.keys()
    rounded = set()
    for key, wanted in expected.items():
        # Half a unit in the last place, of the smallest normal numbers and below that of a constant size.
        allowed = np.maximum(np.abs(wanted) * 2.0**-11, 2.0**-25)
        if (np.abs(found[key] - wanted) > allowed).any():
            raise AssertionError(f"{key} differs")
        if not np.array_equal(found[key], wanted):
            rounded.add(key)
    return rounded


@pytest.mark.parametrize("name", list(QUANTIZED))
def test_the_file_holds_what_the_model_computes_with(name: str, model, tmp_path: Path) -> None:
    planned = convert(model(name), tmp_path / "out.gguf", target="cuda", check=False).plan
    rounded = require_same(gguf_weights.read(tmp_path / "out.gguf"), name)
    for tensor in (tensor for tensor in planned.tensors if tensor.spec.role != "scale"):
        assert tensor.exact == (tensor.spec.source not in rounded), tensor.spec.source
        assert tensor.exact or "are rounded" in tensor.reason
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert any(key.endswith("_proj.weight") for key in rounded) == (name in ROUNDED)
    types = Counter(tensor.codec.name for tensor in linear)
    assert types == EXPECTED_TYPES.get(name, types)


@pytest.mark.parametrize("type_name", ["auto", "f16"])
@pytest.mark.parametrize("name", MODELS)
def test_the_runtime_computes_what_transformers_does(name: str, type_name: str, model, tmp_path: Path) -> None:
    recorded = golden(name)
    planned = convert(model(name), tmp_path / "out.gguf", type=type_name, check=False).plan
    token_ids = recorded["token_ids"].tolist()
    with rt.open(tmp_path / "out.gguf", n_ctx=len(token_ids)) as session:
        found = session.logits(token_ids)
    expected = recorded["logits_int16"] * recorded["logits_step"]
    coarse = any(codecs()[tensor.codec.name].ternary for tensor in planned.tensors)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error <= (TERNARY_ERROR if coarse else RELATIVE_ERROR)
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= SAME_TOP1


def test_humming_stores_what_compressed_tensors_does_under_other_names(model, tmp_path: Path) -> None:
    stored, said, expected = layer("words/2/BF16/group/symmetric")
    del stored[f"{MODULE}.weight_shape"]
    stored[WEIGHT] = stored.pop(f"{MODULE}.weight_packed")
    group = said["config_groups"]["group_0"]["weights"]["group_size"]
    humming = {"quant_method": "humming", "b_dtype": "uint2", "weight_scale_group_size": group, "has_zero_point": False}
    found = read(tmp_path / "model", stored, humming)
    np.testing.assert_array_equal(found.read(slice(None)), expected)


@pytest.mark.parametrize("name", ["ct-mixed", "gsq-4bit", "fp8-blocks", "humming"])
def test_dequantized_folders_hold_the_same_weights(name: str, model, tmp_path: Path) -> None:
    quantize(model(name), tmp_path / "floats", form_named(None, dequantized=True, dtype="f32"))
    found = open_checkpoint(tmp_path / "floats", linear=())
    assert found.packing == "plain floats"
    for key, expected in weights(name).items():
        np.testing.assert_array_equal(found.tensors[key].read(slice(None)).reshape(expected.shape), expected)

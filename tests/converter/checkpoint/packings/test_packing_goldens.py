"""The bitnet packing and the latent weights against what transformers' own code packs and computes (golden/packing)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import checkpoints, gguf_weights, packed_checkpoints, paths
from tests.packed_checkpoints import PACKED
from tritgguf.converter import convert
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors

FOLDER = paths.GOLDEN / "packing"
MODELS = sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem in PACKED)
LAYERS = [
    f"{linear_class}/{dtype}/{shape}"
    for linear_class in ("autobitlinear", "bitlinear")
    for dtype in ("BF16", "F32")
    for shape in ("one", "scalar", "row")
]
FLOAT32_ROUNDING = 3e-7  # of the reference: it multiplies and divides a few times
KEY = "model.layers.0.mlp.up_proj.weight"


def golden(name: str) -> dict[str, Any]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def read(folder: Path, tensors: packed_checkpoints.Stored, quantization: dict[str, Any]) -> np.ndarray:
    """Return what the converter reads where the folder holds these tensors."""
    folder.mkdir()
    packed_checkpoints.write_tensors(folder, tensors)
    _, found = read_packing({"quantization_config": quantization}, read_tensors(folder), linear={KEY})
    assert list(found) == [KEY]
    return found[KEY].read(slice(None))


def test_every_golden_is_used() -> None:
    assert {path.stem for path in FOLDER.glob("*.npz")} == {"layers", "latent", *MODELS}
    assert {PACKED[name].packing for name in MODELS} == {"bitnet", "latent"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 300_000


@pytest.mark.parametrize("layer", LAYERS)
def test_the_test_packs_as_transformers_does(layer: str) -> None:
    recorded = golden("layers")
    trits, packed = recorded[f"{layer}/trits"], recorded[f"{layer}/packed"]
    assert set(np.unique(trits)) == {-1, 0, 1}
    np.testing.assert_array_equal(packed_checkpoints.pack_bitnet(trits), packed)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_packed_layer_is_read_as_transformers_computes_it(layer: str, tmp_path: Path) -> None:
    recorded = golden("layers")
    linear_class, dtype, _ = layer.split("/")
    packed, scale = recorded[f"{layer}/packed"], recorded[f"{layer}/scale"]
    stored = {KEY: ("U8", packed.shape, packed.tobytes()), f"{KEY}_scale": packed_checkpoints.floats(scale, dtype)}
    effective = recorded[f"{layer}/effective"]
    quantization = {"quant_method": "bitnet", "linear_class": linear_class}
    found = read(tmp_path / "right", stored, quantization)
    assert gguf_weights.relative_error(found, effective) <= FLOAT32_ROUNDING
    if linear_class == "bitlinear":  # which is also what nothing said means
        np.testing.assert_array_equal(read(tmp_path / "silent", stored, {"quant_method": "bitnet"}), found)
    quantization["linear_class"] = "bitlinear" if linear_class == "autobitlinear" else "autobitlinear"
    inverted = read(tmp_path / "wrong", stored, quantization)
    factor = np.abs(inverted[effective != 0] / effective[effective != 0])
    assert (np.maximum(factor, 1 / factor) > 10).all()


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_latent_weights_are_read_as_transformers_computes_it(dtype: str, tmp_path: Path) -> None:
    recorded = golden("latent")
    stored = {KEY: packed_checkpoints.floats(recorded[f"{dtype}/latent"], dtype)}
    effective = recorded[f"{dtype}/effective"]
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    assert gguf_weights.relative_error(read(tmp_path / "model", stored, quantization), effective) <= FLOAT32_ROUNDING
    reference = packed_checkpoints.absmean(recorded[f"{dtype}/latent"])
    assert gguf_weights.relative_error(reference, effective) <= FLOAT32_ROUNDING


@pytest.mark.parametrize("name", MODELS)
def test_the_file_of_a_model_holds_what_transformers_computes_with(name: str, packed, tmp_path: Path) -> None:
    recorded = golden(name)
    assert checkpoints.digest(packed(name)) == str(recorded["checkpoint_sha256"]), "run `make golden` again"
    convert(packed(name), tmp_path / "out.gguf", check=False)
    found = gguf_weights.read(tmp_path / "out.gguf", PACKED[name].sub_norms)
    linear = [key for key in recorded if checkpoints.is_linear(key)]
    assert len(linear) == 14
    # One scale per tensor is kept as float32; one per row is an fp16 value in each block.
    allowed = 2.0**-11 if PACKED[name].scale_shape == "row" else FLOAT32_ROUNDING
    for key in linear:
        assert gguf_weights.relative_error(found[key][:, 5:256:50], recorded[key]) <= allowed, key

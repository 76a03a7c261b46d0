"""GPTQ, AutoRound and MLX against what the packages themselves pack and compute of single layers (golden/quantized)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests import paths, quantized_checkpoints, quantized_layers
from tests.quantized_layers import AUTO_ROUND, GPTQ, MLX, N_COLUMNS, PACKAGES, Layer, shape_of
from tritgguf.converter.checkpoint.packed_integers import unpacked
from tritgguf.converter.checkpoint.packing import StoredTensors, read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_file
from tritgguf.converter.checkpoint.stored_tensor import StoredTensor
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError

FOLDER = paths.GOLDEN / "quantized"
CASES = [(package, name) for package, layers in PACKAGES.items() for name in layers]
ALL = slice(None)


def golden(package: str, name: str) -> dict[str, StoredTensor]:
    """Return one case's tensors as the package stored them, without the case's name."""
    stored = read_file(FOLDER / f"{package}.safetensors")
    return {key.removeprefix(f"{name}."): tensor for key, tensor in stored.items() if key.startswith(f"{name}.")}


def words(tensor: StoredTensor) -> np.ndarray:
    return tensor.data.view("<u4").reshape(tensor.shape)


def config(package: str, layer: Layer, **changed: Any) -> dict[str, Any]:
    """Return config.json's keys for a layer."""
    keys: dict[str, Any] = {"bits": layer.bits, "group_size": layer.group}
    if package == "mlx":
        return quantized_checkpoints.mlx(**{**keys, **changed})
    keys["sym"] = layer.symmetric
    if package == "gptq":
        version = "gptq" if layer.minus_one else "gptq_v2"
        return quantized_checkpoints.gptq(**{**keys, "checkpoint_format": version, "format": version, **changed})
    packing_format = "auto_round:auto_gptq" if layer.minus_one else "auto_round"
    return quantized_checkpoints.auto_round(**{**keys, "packing_format": packing_format, **changed})


def read(keys: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> SourceTensor:
    """Return the layer as the converter reads it."""
    inside: StoredTensors = {f"layer.{key}": tensor for key, tensor in stored.items() if key != "expected"}
    _, found = read_packing(keys, inside, linear={"layer.weight"})
    assert list(found) == ["layer.weight"]
    return found["layer.weight"]


def expected(stored: Mapping[str, StoredTensor]) -> np.ndarray:
    return stored["expected"].read(ALL)


def test_every_golden_is_used() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(PACKAGES)
    assert max(path.stat().st_size for path in FOLDER.iterdir()) < 200_000
    for package, layers in PACKAGES.items():
        stored = read_file(FOLDER / f"{package}.safetensors")
        assert {key.split(".")[0] for key in stored} == set(layers)


@pytest.mark.parametrize(("package", "name"), CASES)
def test_a_layer_is_read_as_its_package_computes_it(package: str, name: str) -> None:
    layer, stored = PACKAGES[package][name], golden(package, name)
    tensor = read(config(package, layer), stored)
    assert tensor.shape == shape_of(layer)
    found, wanted = tensor.read(ALL), expected(stored)
    if package != "mlx":  # whose weights were computed in float32, the others' in float16
        found = found.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(wanted)) > 8


@pytest.mark.parametrize(("package", "name"), CASES)
def test_rows_are_read_alone_as_all_together(package: str, name: str) -> None:
    layer, stored = PACKAGES[package][name], golden(package, name)
    tensor = read(config(package, layer), stored)
    whole = tensor.read(ALL)
    last = layer.n_rows - 1
    for rows in (slice(0, 1), slice(5, 29), slice(last, last + 1), slice(last - 6, last + 1), slice(3, 3)):
        np.testing.assert_array_equal(tensor.read(rows), whole[rows])
    shuffled = np.random.default_rng(1).permutation(layer.n_rows)[:20]
    np.testing.assert_array_equal(tensor.read(shuffled), whole[shuffled])
    if tensor.coded is not None:
        coded = tensor.read_codes(shuffled)
        assert coded is not None
        np.testing.assert_array_equal(coded.dequantize(), whole[shuffled])


@pytest.mark.parametrize(("package", "name"), CASES)
def test_two_bits_with_zero_points_of_1_or_2_are_codes(package: str, name: str) -> None:
    layer, stored = PACKAGES[package][name], golden(package, name)
    tensor = read(config(package, layer), stored)
    assert (tensor.coded is not None) == (layer.bits == 2 and layer.symmetric)
    if tensor.coded is not None:
        coded = tensor.coded.read_codes(ALL)
        assert tensor.coded.levels == 4
        assert set(np.unique(coded.codes)) == {-1, 0, 1, 2}
        np.testing.assert_array_equal(coded.dequantize(), expected(stored))


@pytest.mark.parametrize("name", GPTQ)
def test_the_test_packs_as_gptqmodel_does(name: str) -> None:
    assert_packed_alike(name, GPTQ[name], golden("gptq", name))


@pytest.mark.parametrize("name", AUTO_ROUND)
def test_the_test_packs_as_auto_round_does(name: str) -> None:
    assert_packed_alike(name, AUTO_ROUND[name], golden("auto_round", name))


def assert_packed_alike(name: str, layer: Layer, stored: Mapping[str, StoredTensor]) -> None:
    shape = shape_of(layer)
    made = quantized_layers.gptq_entries(
        quantized_layers.integers(name, layer, shape), quantized_layers.zeros(name, layer, shape), layer
    )
    for key, tensor in stored.items():
        if key in made:
            assert tensor.shape == made[key].shape, key
            np.testing.assert_array_equal(words(tensor), made[key].view(np.uint32), err_msg=key)
    scales = quantized_layers.scales(name, layer, shape)
    np.testing.assert_array_equal(stored["scales"].read(ALL), scales.T)


@pytest.mark.parametrize("name", MLX)
def test_the_test_packs_as_mlx_does(name: str) -> None:
    layer, weight = MLX[name], words(golden("mlx", name)["weight"])
    integers = unpacked(np.ascontiguousarray(weight).view(np.uint8), layer.bits)
    assert len(np.unique(integers)) > 0.9 * (1 << layer.bits)
    np.testing.assert_array_equal(quantized_layers.packed(integers, layer.bits), weight)


# --- wrong conventions must show ---------------------------------------------------------------------------------


def differs(keys: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> bool:
    """Whether these are read as other weights than the package computes."""
    return not np.array_equal(read(keys, stored).read(ALL).astype(np.float16), expected(stored).astype(np.float16))


@pytest.mark.parametrize(("package", "name"), [("gptq", "zeros-v1"), ("gptq", "zeros-v2"), ("gptq", "3-bits-v1")])
def test_the_other_version_of_zero_points_shows(package: str, name: str) -> None:
    layer, stored = PACKAGES[package][name], golden(package, name)
    other = "gptq_v2" if layer.minus_one else "gptq"
    assert not differs(config(package, layer), stored)
    assert differs(config(package, layer, checkpoint_format=other, format=other), stored)


@pytest.mark.parametrize("name", ["v1", "v2", "4-bits", "8-bits"])
def test_symmetric_zero_points_tell_their_version_where_config_json_does_not(name: str) -> None:
    layer, stored = GPTQ[name], golden("gptq", name)
    assert not differs(config("gptq", layer, checkpoint_format=None, format=None), stored)


@pytest.mark.parametrize("name", ["v1", "v2", "4-bits"])
def test_symmetric_zero_points_that_contradict_config_json_are_refused(name: str) -> None:
    layer, stored = GPTQ[name], golden("gptq", name)
    other = "gptq_v2" if layer.minus_one else "gptq"
    with pytest.raises(SourceError, match=r"\.qzeros holds .* sym says that they are"):
        read(config("gptq", layer, checkpoint_format=other, format=other), stored)


def changed(tensor: StoredTensor, values: np.ndarray) -> StoredTensor:
    """Return a stored tensor with other values."""
    data = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    return StoredTensor(tensor.name, tensor.dtype, values.shape, tensor.file, data)


@pytest.mark.parametrize(("package", "name"), [case for case in CASES if PACKAGES[case[0]][case[1]].bits == 2])
def test_wrong_order_and_signs_show(package: str, name: str) -> None:
    layer, stored = PACKAGES[package][name], golden(package, name)
    packed, scales = ("weight" if package == "mlx" else "qweight"), stored["scales"]
    by_row = 1 if package == "mlx" else 0
    keys = config(package, layer)
    halves = scales.data.view("<u2").reshape(scales.shape)
    mutants = {"signs": changed(scales, halves ^ 0x8000)}
    if halves.shape[by_row] > 1:
        mutants["order of groups"] = changed(scales, np.flip(halves, axis=by_row))
    turned = {"order of columns": np.flip(words(stored[packed]), axis=by_row), "bits": words(stored[packed]) >> 2}
    for what, tensor in mutants.items():
        assert differs(keys, {**stored, "scales": tensor}), what
    for what, values in turned.items():
        assert differs(keys, {**stored, packed: changed(stored[packed], values)}), what


def test_a_matrix_that_is_not_transposed_shows() -> None:
    layer, stored = GPTQ["v1"], golden("gptq", "v1")
    tensor = read(config("gptq", layer), stored)
    integers = unpacked(np.ascontiguousarray(words(stored["qweight"]).T).view(np.uint8), 2)
    assert integers.shape == (layer.n_rows, N_COLUMNS)
    wrong = unpacked(words(stored["qweight"]).view(np.uint8).reshape(layer.n_rows, -1), 2)
    assert not np.array_equal(wrong, integers)
    groups = integers.reshape(layer.n_rows, -1, 64)
    scales = stored["scales"].read(ALL).T[..., None]
    np.testing.assert_array_equal(tensor.read(ALL), ((groups - 2.0) * scales).reshape(integers.shape))


def test_weights_without_their_settings_are_refused() -> None:
    """Older programs write these into quantize_config.json."""
    stored = golden("gptq", "v1")
    inside = {f"layer.{key}": tensor for key, tensor in stored.items() if key != "expected"}
    with pytest.raises(SourceError, match=r"quantize_config\.json"):
        read_packing({}, inside, linear=set())

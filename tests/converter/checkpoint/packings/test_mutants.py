"""Wrong rules put into the readers: the comparison with the model's weights must notice each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import gguf_weights
from tests.packed_checkpoints import PACKED, weights
from tritgguf.converter import convert
from tritgguf.converter.checkpoint import packing
from tritgguf.converter.checkpoint.packings import base3, bitnet_packed, latent_weights
from tritgguf.converter.core import kernels
from tritgguf.converter.core.tensors import CodedRows, PackedRows, SourceTensor, row_chunks
from tritgguf.converter.model import architecture
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.decoder import pair_neighbours

LOOSEST = 2.0**-11  # what fp16 scales cost at most


def compare(name: str, folder: Path, out: Path) -> None:
    """Convert and compare; raise AssertionError where a weight differs."""
    convert(folder, out, check=False)
    gguf_weights.assert_same(gguf_weights.read(out, PACKED[name].sub_norms), weights(name), LOOSEST)


@pytest.mark.parametrize("name", list(PACKED))
def test_the_right_rules_pass(name: str, packed, tmp_path: Path) -> None:
    compare(name, packed(name), tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["2b4t", "falcon3", "llama-rows", "14b-seed", "14b-padded"])
def test_other_rows_given_to_the_kernels_are_noticed(name, packed, tmp_path: Path, monkeypatch) -> None:
    kind = base3.Base3Tensor if name.startswith("14b") else bitnet_packed.BitnetTensor
    right = kind.read_packed

    def read_packed(self: Any, rows: slice | np.ndarray) -> PackedRows:
        given = right(self, rows)
        return replace(given, numbers=np.ascontiguousarray(given.numbers[::-1]))

    monkeypatch.setattr(kind, "read_packed", read_packed)
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


# The other mutants change the readers in Python, so they go the way that is taken where there are no kernels.


# --- bitnet packing ----------------------------------------------------------------------------------------------


def bitnet_codes(place: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]], sign: int = 1) -> Any:
    """Return a read_codes with another layout: `place` gives the byte row and the shift of each wanted row."""

    def read_codes(self: bitnet_packed.BitnetTensor, rows: slice | np.ndarray) -> CodedRows:
        n_packed, n_columns = self.stored.shape
        wanted = np.arange(4 * n_packed)[rows]
        byte_rows, shifts = place(wanted, n_packed)
        stored = self.stored.data.reshape(n_packed, n_columns)[byte_rows]
        digits = stored >> shifts.astype(np.uint8)[:, None] & 3
        codes = (digits.astype(np.int8) - 1) * np.int8(sign)
        return CodedRows(codes, self.row_scales[wanted], n_columns)

    return read_codes


BITNET_LAYOUTS = {
    "right": bitnet_codes(lambda rows, n: (rows % n, 2 * (rows // n))),
    "high bits first": bitnet_codes(lambda rows, n: (rows % n, 6 - 2 * (rows // n))),
    "rows interleaved": bitnet_codes(lambda rows, n: (rows // 4, 2 * (rows % 4))),
    "sign inverted": bitnet_codes(lambda rows, n: (rows % n, 2 * (rows // n)), sign=-1),
}


@pytest.mark.parametrize("layout", list(BITNET_LAYOUTS))
@pytest.mark.parametrize("name", ["2b4t", "falcon3"])
def test_another_layout_of_bitnet_packing_is_noticed(layout, name, packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "numpy")
    monkeypatch.setattr(bitnet_packed.BitnetTensor, "read_codes", BITNET_LAYOUTS[layout])
    if layout == "right":  # so that it is the layout, not the stand-in, that fails
        compare(name, packed(name), tmp_path / "out.gguf")
        return
    with pytest.raises(AssertionError, match=r"_proj.weight differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["2b4t", "2b4t-scalar", "falcon3", "llama-rows"])
def test_the_inverted_scale_is_noticed(name, packed, tmp_path: Path, monkeypatch) -> None:
    multiplies = bitnet_packed._multiplies
    monkeypatch.setattr(bitnet_packed, "_multiplies", lambda linear_class: not multiplies(linear_class))
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


def test_the_scale_of_another_row_is_noticed(packed, tmp_path: Path, monkeypatch) -> None:
    right = bitnet_packed._row_scales
    monkeypatch.setattr(bitnet_packed, "_row_scales", lambda *args: np.ascontiguousarray(right(*args)[::-1]))
    with pytest.raises(AssertionError, match="differs by"):
        compare("llama-rows", packed("llama-rows"), tmp_path / "out.gguf")


def order_rows(monkeypatch: pytest.MonkeyPatch, name: str, order: Callable[[int, int], np.ndarray | None]) -> None:
    """Give the rows of q and k, weights and biases, another order."""
    (known,) = [a for a in architecture.architectures() if PACKED[name].base.architecture in a.classes]

    def reordered(config: DecoderConfig, spec: TensorSpec) -> TensorSpec:
        heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(spec.name.split(".")[-2])
        return replace(spec, rows=order(heads, config.head_dim)) if heads else spec

    def tensors(config: DecoderConfig) -> list[TensorSpec]:
        return [reordered(config, spec) for spec in known.tensors(config)]

    monkeypatch.setattr(architecture, "architectures", lambda: (replace(known, tensors=tensors),))


@pytest.mark.parametrize("name", ["falcon3", "llama-rows", "llama-online", "bitcpm"])
def test_rows_left_in_the_order_of_transformers_are_noticed(name, packed, tmp_path: Path, monkeypatch) -> None:
    order_rows(monkeypatch, name, lambda n_heads, head_dim: None)
    with pytest.raises(AssertionError, match=r"[qk]_proj.weight differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["2b4t", "1bitllm", "14b-newer", "bonsai"])
def test_rows_reordered_for_a_graph_that_does_not_want_it_are_noticed(name, packed, tmp_path, monkeypatch) -> None:
    order_rows(monkeypatch, name, pair_neighbours)
    with pytest.raises(AssertionError, match=r"[qk]_proj.weight differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


# --- base-3 packing ----------------------------------------------------------------------------------------------


DIGITS = base3.FOURS[:, None].view(np.int8)  # (byte, place) → trit


def fours(digits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digits).view(np.uint32)[:, 0]


def planar(self: base3.Base3Tensor, rows: slice | np.ndarray) -> CodedRows:
    """Read the columns of a digit place as neighbours."""
    stored = self.stored.data.reshape(self.stored.shape)[rows]
    codes = DIGITS[stored].swapaxes(1, 2).reshape(len(stored), -1)[:, : self.shape[1]]
    return CodedRows(np.ascontiguousarray(codes), self.scales(rows), self.group)


def next_groups_scales(self: base3.Base3Tensor, rows: slice | np.ndarray) -> np.ndarray:
    return np.roll(right_scales(self, rows), 1, axis=1)


right_scales = base3.Base3Tensor.scales
BASE3_MUTANTS: dict[str, tuple[Any, str, Any]] = {
    "high digit first": (base3, "FOURS", fours(DIGITS[:, ::-1])),
    "sign inverted": (base3, "FOURS", fours(-DIGITS)),
    "columns by place": (base3.Base3Tensor, "read_codes", planar),
    "the next group's scale": (base3.Base3Tensor, "scales", next_groups_scales),
}


@pytest.mark.parametrize("mutant", list(BASE3_MUTANTS))
@pytest.mark.parametrize("name", ["14b-seed", "14b-newer", "14b-padded"])
def test_another_reading_of_base_3_is_noticed(mutant, name, packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "numpy")
    monkeypatch.setattr(*BASE3_MUTANTS[mutant])
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


# --- latent weights and floats -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowMeans(latent_weights.LatentTensor):
    """One scale per row instead of one per tensor."""

    def read_codes(self, rows: slice | np.ndarray) -> CodedRows:
        values = self.stored.read(rows)
        scales = np.abs(values).mean(axis=1, keepdims=True)
        return CodedRows(np.clip(np.rint(values / scales), -1, 1).astype(np.int8), scales, self.group)

    def scales(self, rows: slice) -> np.ndarray:
        return self.read_codes(rows).scales


@dataclass(frozen=True)
class Cut(latent_weights.LatentTensor):
    """Fractions cut off instead of rounded."""

    def read_codes(self, rows: slice | np.ndarray) -> CodedRows:
        right = super().read_codes(rows)
        codes = np.clip(np.trunc(self.stored.read(rows) * self.inverse_scale), -1, 1).astype(np.int8)
        return CodedRows(codes, right.scales, self.group)


@dataclass(frozen=True)
class FirstChunk(latent_weights.LatentTensor):
    """The mean of the first chunk of rows only."""

    @property
    def inverse_scale(self) -> float:
        rows = next(iter(row_chunks((self.shape[0] // 2, self.shape[1]))))
        return float(1 / np.abs(self.stored.read(rows)).mean(dtype=np.float64))


@pytest.mark.parametrize("mutant", [RowMeans, Cut, FirstChunk])
@pytest.mark.parametrize("name", ["2b4t-online", "1bitllm", "llama-online"])
def test_another_rule_for_latent_weights_is_noticed(mutant, name, packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(latent_weights, "LatentTensor", mutant)
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["2b4t-online", "1bitllm", "llama-online"])
def test_latent_weights_taken_as_they_are_are_noticed(name, packed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(latent_weights, "ternarized", lambda tensor: tensor)
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")


@pytest.mark.parametrize("name", ["falcon-e-bfloat16", "bitcpm", "bonsai"])
def test_absmean_of_a_grid_is_noticed(name, packed, tmp_path: Path, monkeypatch) -> None:
    known = packing.packings()

    def read(config: Any, stored: Any, linear: Any) -> dict[str, SourceTensor]:
        tensors = known["plain floats"].read(config, stored, linear)
        return {name: latent_weights.ternarized(t) if name in linear else t for name, t in tensors.items()}

    mutant = replace(known["plain floats"], read=read)
    monkeypatch.setattr(packing, "packings", lambda: {**known, "plain floats": mutant})
    with pytest.raises(AssertionError, match="differs by"):
        compare(name, packed(name), tmp_path / "out.gguf")

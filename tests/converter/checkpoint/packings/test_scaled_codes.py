"""Codes and scales: wrong rules put into the readers must be noticed, and the levels of codes are found."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants

from tests import checkpoints, packed_checkpoints, paths, scaled_checkpoints
from tests.scaled_checkpoints import pack_words, weights
from tritgguf.converter.checkpoint import stored_tensor
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.packing import read_packing
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.checkpoint.scaled_codes import PerBlock, Words, WordsDown
from tritgguf.converter.core.floats import bf16
from tritgguf.converter.errors import SourceError

RECORDED = paths.GOLDEN / "compressed_tensors"
COLUMNS = slice(5, 256, 60)
MODULE = "model.layers.0.mlp.up_proj"


def shifted(codes: Any, by: int) -> Any:
    """Return a `read` of the codes that are off by one."""
    right = codes.read
    return lambda self, rows: right(self, rows) + by


def high_bits_first(self: Words, rows: slice | np.ndarray) -> np.ndarray:
    """Read the words from the other end."""
    right = self.stored.data.reshape(self.stored.shape[0], -1)[rows]
    words = np.ascontiguousarray(right).view("<u4")
    shifts = np.arange(32 - self.bits, -1, -self.bits, dtype=np.uint32)
    codes = (words[..., None] >> shifts & np.uint32(2**self.bits - 1)).astype(np.int16) - 2 ** (self.bits - 1)
    return codes.reshape(len(words), -1)[:, : self.n_columns].astype(np.int8)


def other_blocks(self: PerBlock, rows: slice | np.ndarray, n_rows: int) -> np.ndarray:
    """Give each block the next one's scale."""
    return np.roll(right_blocks(self, rows, n_rows), 1, axis=1)


def inverted(self: PerBlock, rows: slice | np.ndarray, n_rows: int) -> np.ndarray:
    """Divide by the scale."""
    return 1 / right_blocks(self, rows, n_rows)


def transposed(self: PerBlock, rows: slice | np.ndarray, n_rows: int) -> np.ndarray:
    """Read the scales as if those of a column came first."""
    stored = self.numbers.stored
    everything = np.asarray(self.numbers.read(np.arange(stored.shape[0])), np.float32)
    turned = everything.reshape(stored.shape[::-1]).T
    return np.ascontiguousarray(turned[np.arange(n_rows)[rows] // self.block[0]])


def as_e5m2(codes: np.ndarray, dtype: str) -> Any:
    """Read E4M3 as E5M2."""
    return right_widened(codes, "F8_E5M2")


right_blocks = PerBlock.read
right_widened = stored_tensor.widened8
TWO_BITS = ("ct-2bit", "ct-2bit-row", "humming")
WORDS = (*TWO_BITS, "gsq-4bit", "ct-mixed", "ct-2bit-asymmetric")
BLOCKS = ("fp8-blocks", "fp8-bf16-scales")
MUTANTS: dict[str, tuple[Any, str, Any, tuple[str, ...]]] = {
    "offset 1": (Words, "read", shifted(Words, 1), WORDS),
    "offset 3": (Words, "read", shifted(Words, -1), WORDS),
    "high bits first": (Words, "read", high_bits_first, WORDS),
    "zero points off by one": (WordsDown, "read", shifted(WordsDown, 1), ("ct-2bit-asymmetric", "ct-mixed")),
    "the next block's scale": (PerBlock, "read", other_blocks, ("ct-2bit", "humming", *BLOCKS)),
    "scales transposed": (PerBlock, "read", transposed, ("ct-2bit", "humming", *BLOCKS)),
    "scales inverted": (PerBlock, "read", inverted, (*TWO_BITS, "gsq-4bit", *BLOCKS, "ct-int8", "ct-fp8")),
    "E5M2 for E4M3": (stored_tensor, "widened8", as_e5m2, (*BLOCKS, "ct-fp8")),
}


@pytest.mark.parametrize(("mutant", "name"), [(mutant, name) for mutant in MUTANTS for name in MUTANTS[mutant][3]])
def test_another_reading_is_noticed(mutant: str, name: str, model, monkeypatch) -> None:
    """Against the recorded weights, where there are any; of the read tensors, since a plan may refuse wrong ones."""
    monkeypatch.setattr(*MUTANTS[mutant][:3])
    tensors = open_checkpoint(model(name), linear=()).tensors
    assert tensors is not None
    expected, columns = weights(name), slice(None)
    if not name.startswith("humming"):
        with np.load(RECORDED / f"{name}.npz") as file:
            expected, columns = dict(file), COLUMNS
    keys = [key for key in expected if checkpoints.is_linear(key)]
    assert any(not np.array_equal(tensors[key].read(slice(None))[:, columns], expected[key]) for key in keys)


def test_the_right_reading_passes_that_comparison(model) -> None:
    for name in {name for mutant in MUTANTS.values() for name in mutant[3]}:
        tensors = open_checkpoint(model(name), linear=()).tensors
        assert tensors is not None
        expected = weights(name)
        for key in expected:
            found = tensors[key].read(slice(None))
            np.testing.assert_array_equal(found.reshape(expected[key].shape), expected[key])


# --- codes in a wider container ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "lowest", "highest"), [(2, -1, 1), (2, -2, 1), (4, -1, 1), (4, -2, 1)])
@pytest.mark.parametrize("n_columns", [128, 96, 40])
def test_the_levels_are_those_of_the_codes(
    bits: int, lowest: int, highest: int, n_columns: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng([bits, lowest + 2, n_columns])
    for outlier in [None, *range(-(2 ** (bits - 1)), 2 ** (bits - 1))]:
        codes = rng.integers(lowest, highest + 1, (8, n_columns))
        if outlier is not None:
            codes[5, rng.integers(n_columns)] = outlier
        folder = tmp_path / str(outlier)
        said = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        group = {"weights": {"num_bits": bits, "group_size": 8}, "targets": ["Linear"]}
        scales = rng.choice(np.array([-0.5, 0.25, 1.0], np.float32), (8, n_columns // 8))
        stored = {
            f"{MODULE}.weight_packed": entry("I32", pack_words(codes, bits)),
            f"{MODULE}.weight_shape": entry("I64", np.array([8, n_columns])),
            f"{MODULE}.weight_scale": packed_checkpoints.floats(scales, "F32"),
        }
        folder.mkdir()
        packed_checkpoints.write_tensors(folder, stored)
        config = {"quantization_config": {**said, "config_groups": {"group_0": group}}}
        found = read_packing(config, read_tensors(folder), linear=())[1][f"{MODULE}.weight"]
        np.testing.assert_array_equal(found.read(slice(None)), codes * scales.repeat(8, axis=1))
        coded = found.coded
        assert (coded is None) == (codes.min() < -2 or codes.max() > 1)
        if coded is not None:
            assert coded.levels == (3 if codes.min() >= -1 else 4)
            rows = coded.read_codes(slice(2, 8))
            assert rows.codes.min() >= -1
            assert rows.codes.max() <= (1 if coded.levels == 3 else 2)
            np.testing.assert_array_equal(rows.dequantize(), (codes * scales.repeat(8, axis=1))[2:])


def entry(dtype: str, values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, values.shape, values.tobytes()


def test_bf16_rounds_as_ggml_does() -> None:
    rng = np.random.default_rng(17)
    words = rng.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    words[:4] = [0x3F808000, 0x3F818000, 0x3F808001, 0x80000000]  # ties to even, above a tie, -0
    values = words.view(np.float32)
    values = values[np.isfinite(values)]
    expected = quants.dequantize(
        quants.quantize(values, gguf.GGMLQuantizationType.BF16), gguf.GGMLQuantizationType.BF16
    )
    np.testing.assert_array_equal(bf16(values).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point"])
def test_a_file_that_changes_is_noticed_whichever_part_it_holds(part: str, tmp_path: Path) -> None:
    """Each part lies in a file of its own; a conversion asks for the rows' parts as it reads them."""
    folder = scaled_checkpoints.build("ct-2bit-asymmetric", tmp_path / "model")
    tensors = scaled_checkpoints.stored("ct-2bit-asymmetric")
    (folder / "model.safetensors").unlink()
    shards = {name: "part.safetensors" if name.endswith(part) else "rest.safetensors" for name in tensors}
    for shard in set(shards.values()):
        content = {name: tensors[name] for name in tensors if shards[name] == shard}
        packed_checkpoints.write_tensors(folder, content)
        (folder / "model.safetensors").rename(folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    read = open_checkpoint(folder, linear=()).tensors
    assert read is not None
    read[f"{MODULE}.weight"].require_unchanged()
    with (folder / "part.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    os.utime(folder / "part.safetensors", (1, 1))
    with pytest.raises(SourceError, match=r"part\.safetensors"):
        read[f"{MODULE}.weight"].require_unchanged()

"""Each way of a tensor's being wrong is found by its own reason."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests import packed_checkpoints
from tests.converter.verification.checks import GATE, NORM, UP, Q, bad, unpermuted, verdicts
from tests.gguf_edit import patch, rewrite
from tritgguf.converter import convert
from tritgguf.converter.errors import TensorError
from tritgguf.converter.verification.verification import require_good, verify

Folder = Callable[[str], Path]


def flip(row: int, place: int) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[row, place] ^= 0x10

    return change


@pytest.mark.parametrize(
    ("name", "type_name", "tensor", "row", "reason"),
    [
        ("llama1", "tq2_0", Q, 77, "1 of 256 rows differ, the first is row 77, though TQ2_0 can hold"),
        ("llama1", "f16", GATE, 500, "1 of 512 rows differ, the first is row 500"),
        ("llama-gqa", "tq2_0", Q, 5, "1 of 256 rows differ from the source quantized by mse"),
        ("llama-gqa", "q8_0", UP, 5, "1 of 512 rows differ from the source quantized by q8_0"),
        ("llama-gqa", "f16", "token_embd.weight", 319, "1 of 320 rows differ, the first is row 319"),
        ("llama-gqa", "f16", NORM, 0, "its values differ, though F32 can hold"),
        ("2b4t-scalar", "tq2_0", Q, 3, "1 of 256 rows differ, the first is row 3"),
    ],
)
def test_one_changed_byte(
    name: str, type_name: str, tensor: str, row: int, reason: str, model: Folder, tmp_path: Path
) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out
    found = bad(verify(model(name), patch(out, tensor, flip(row, 6))))
    assert list(found) == [tensor]
    assert reason in found[tensor]


@pytest.mark.parametrize(
    ("name", "type_name"), [("llama1", "tq2_0"), ("llama-gqa", "tq2_0"), ("llama-gqa", "q8_0"), ("llama-gqa", "f16")]
)
def test_two_tensors_swapped(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    swapped = rewrite(out, tmp_path / "swapped.gguf", tensors={GATE: stored[UP], UP: stored[GATE]})
    assert bad(verify(model(name), swapped)) == {
        GATE: "it holds the values of model.layers.1.mlp.up_proj.weight",
        UP: "it holds the values of model.layers.1.mlp.gate_proj.weight",
    }


def inverted_fp16(start: int) -> Callable[[np.ndarray], None]:
    """Invert the fp16 scale of every block of 66 bytes."""

    def change(rows: np.ndarray) -> None:
        blocks = rows.reshape(len(rows), -1, 66)
        scales = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")
        blocks[..., start : start + 2] = np.where(scales == 0, scales, 1 / scales).astype("<f2").view(np.uint8)

    return change


def test_an_inverted_scale_in_the_file(model: Folder, tmp_path: Path) -> None:
    with np.errstate(divide="ignore"):
        out = patch(convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out, UP, inverted_fp16(64))
    assert bad(verify(model("llama1"), out)) == {UP: "its scale is inverted: each value is 1 / the expected one"}


def test_an_inverted_scale_tensor(model: Folder, tmp_path: Path) -> None:
    out = convert(model("2b4t-scalar"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def invert(rows: np.ndarray) -> None:
        rows.view("<f4")[:] = 1 / rows.view("<f4")

    found = verify(model("2b4t-scalar"), patch(out, UP.replace("weight", "scale"), invert))
    assert bad(found) == {UP: "its scale is inverted: each value is 1 / the expected one"}


def test_a_file_made_with_the_scale_the_wrong_way(model: Folder, tmp_path: Path) -> None:
    """As llama.cpp's own converter does with autobitlinear checkpoints."""
    wrong = packed_checkpoints.build("2b4t", tmp_path / "wrong")
    config = packed_checkpoints.read_config(wrong)
    config["quantization_config"]["linear_class"] = "bitlinear"
    packed_checkpoints.write_config(wrong, config)
    found = bad(verify(model("2b4t"), convert(wrong, tmp_path / "out.gguf", "tq2_0", check=False).out))
    assert len(found) == 14
    assert set(found.values()) == {"its scale is inverted: each value is 1 / the expected one"}


def test_a_scale_twice_too_large(model: Folder, tmp_path: Path) -> None:
    out = convert(model("2b4t-scalar"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def double(rows: np.ndarray) -> None:
        rows.view("<f4")[:] *= 2

    found = verify(model("2b4t-scalar"), patch(out, UP.replace("weight", "scale"), double))
    assert bad(found) == {UP: "its scale is wrong: the values are 2 times the source's"}


def test_latent_weights_rounded_a_second_time(model: Folder, tmp_path: Path) -> None:
    """Absmean on weights that are ternary already multiplies them by their density."""
    out = convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def shrink(rows: np.ndarray) -> None:
        scales = rows.reshape(len(rows), -1, 66)[..., 64:]
        scales[:] = (np.ascontiguousarray(scales).view("<f2") * np.float16(0.69)).view(np.uint8)

    assert "its scale is wrong: the values are 0.6" in bad(verify(model("llama1"), patch(out, Q, shrink)))[Q]


@pytest.mark.parametrize(("name", "type_name"), [("llama1", "tq1_0"), ("llama-gqa", "tq2_0"), ("llama-gqa", "f16")])
def test_q_in_the_checkpoint_s_row_order(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out

    def unpermute(rows: np.ndarray) -> None:
        rows[:] = unpermuted(rows.copy(), 4)

    assert bad(verify(model(name), patch(out, Q, unpermute))) == {
        Q: "its rows are in the checkpoint's order, but the graph needs another order"
    }


def test_q_permuted_for_a_graph_that_needs_no_order(model: Folder, tmp_path: Path) -> None:
    out = convert(model("qwen2"), tmp_path / "out.gguf", "f16", check=False).out

    def permute(rows: np.ndarray) -> None:
        rows[:] = rows.reshape(4, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).copy()

    assert bad(verify(model("qwen2"), patch(out, Q, permute))) == {Q: "its rows are the source's in another order"}


def test_tensors_missing_surplus_and_misshapen(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    extra = (np.zeros(4, np.float32), GGMLQuantizationType.F32)
    half = (np.zeros((256, 128), np.float32), GGMLQuantizationType.F32)
    scale = (np.ones(1, np.float32), GGMLQuantizationType.F32)
    changes = {UP: None, "surplus.weight": extra, Q: half, "token_embd.scale": scale}
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", tensors=changes))
    assert bad(found) == {
        Q: "its shape is (256, 128); expected (256, 256)",
        UP: "the file doesn't have this tensor",
        "surplus.weight": "the model has no such tensor",
        "token_embd.scale": "the graph doesn't use this scale",
    }
    assert verdicts(found)[UP] == "missing"
    assert verdicts(found)["surplus.weight"] == "extra"
    with pytest.raises(TensorError, match=r"^out\.gguf differs from the model: .* \(and 3 more\)") as caught:
        require_good(found.problems, tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)


def test_a_tensor_with_nan(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    values = np.full(256, np.nan, np.float32)
    out = rewrite(ordinary, tmp_path / "out.gguf", tensors={NORM: (values, GGMLQuantizationType.F32)})
    found = verify(model("llama-gqa"), out)
    assert verdicts(found)[NORM] == "unreadable"
    assert "256 NaN or Inf values" in bad(found)[NORM]

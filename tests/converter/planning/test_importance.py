"""`convert --imatrix`: which tensors it weighs, experts each by their own, what the file and the user are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import checkpoints
from tests.command_line import run_captured
from tests.gguf_edit import patch
from tests.kernel_comparison import computed_by
from tritgguf.converter import UnsupportedError, convert, plan
from tritgguf.converter.core.tensors import Floats
from tritgguf.converter.gguf_io.imatrix import Entry, Imatrix, read_imatrix, write_imatrix
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.open import open_model
from tritgguf.converter.quant.weighted_fit import fitted
from tritgguf.converter.verification.tensor_check import TensorCheck, check_tensor
from tritgguf.converter.verification.verification import paired, verify

GATE, DOWN = "blk.1.ffn_gate.weight", "blk.1.ffn_down.weight"
EXPERTS = "blk.1.ffn_down_exps.weight"


def importance(*shape: int) -> np.ndarray:
    return np.exp(np.random.default_rng(41).normal(0, 2, shape)).astype(np.float32)


def written(path: Path, **entries: np.ndarray) -> Path:
    """Write an importance matrix whose mean squares are these, of layers blk.1.NAME.weight."""
    found = {
        f"blk.1.{name}.weight": Entry(4 * sums, np.full(len(sums), 4, np.float32)) for name, sums in entries.items()
    }
    write_imatrix(Imatrix(path, found, ("words.txt",), 3, 512))
    return path


def stored(file: Path, name: str) -> np.ndarray:
    tensor = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == name)
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("llama-gqa", tmp_path_factory.mktemp("float") / "model")


def n_columns(model: Path, name: str) -> int:
    return next(tensor.spec.shape[-1] for tensor in plan(model, "f32").tensors if tensor.spec.name == name)


@pytest.fixture
def imatrix(model: Path, tmp_path: Path) -> Path:
    return written(tmp_path / "i.gguf", ffn_down=importance(1, n_columns(model, DOWN)))


@pytest.mark.parametrize(("kind", "method", "group"), [("tq2_0", "mse", 256), ("q2_0", "four_levels", 64)])
def test_the_layers_are_fitted_with_their_importance(
    kind: str, method: str, group: int, model: Path, imatrix: Path, tmp_path: Path
) -> None:
    file = convert(model, tmp_path / "out.gguf", kind, method, imatrix=imatrix, check=False)
    weights = checkpoints.weights("llama-gqa")
    for name, ours, weigh in ((DOWN, "down", importance), (GATE, "gate", lambda _, n: np.ones((1, n), np.float32))):
        rows = weights[f"model.layers.1.mlp.{ours}_proj.weight"].astype(np.float32)
        expected = fitted(4 if method == "four_levels" else 3, Floats.of(rows), group, weigh(1, rows.shape[1])[0])
        np.testing.assert_array_equal(stored(file.out, name), expected.dequantize())
    reasons = {tensor.spec.name: tensor.reason for tensor in file.plan.tensors}
    assert f"quantized by {method}, importance-weighted, which loses quality" in reasons[DOWN]
    assert "importance" not in reasons[GATE]
    n_layers = sum(tensor.spec.role == "linear" for tensor in file.plan.tensors)
    notes = " ".join(file.plan.notes)
    assert f"i.gguf of words.txt, 3 chunks: 1 of {n_layers} quantized tensors are importance-weighted" in notes
    assert "it has no inputs of blk.N.attn_q.weight, " in notes
    assert ("a 2-bit model, not a ternary one" in notes) == (method == "four_levels")
    assert ("with three levels" in notes) == (method == "mse")


def test_the_file_tells_its_origin(model: Path, imatrix: Path, tmp_path: Path) -> None:
    """As llama-quantize's files do; a file converted again with another one tells that."""
    file = convert(model, tmp_path / "out.gguf", "tq2_0", imatrix=imatrix, check=False).out
    fields = gguf.GGUFReader(file).fields
    expected = {"file": "i.gguf", "dataset": "words.txt", "entries_count": 1, "chunks_count": 3}
    found = {name.removeprefix("quantize.imatrix."): field for name, field in fields.items() if "imatrix" in name}
    assert {name: field.contents() for name, field in found.items()} == expected


def test_each_expert_by_its_own(tmp_path: Path) -> None:
    model = checkpoints.build("mixtral", tmp_path / "model")
    imatrix = written(tmp_path / "i.gguf", ffn_down_exps=importance(4, n_columns(model, EXPERTS)))
    file = convert(model, tmp_path / "out.gguf", "tq2_0", imatrix=imatrix, check=False).out
    weights = checkpoints.weights("mixtral")
    assert "had no inputs" not in " ".join(plan(model, "tq2_0", imatrix=imatrix).notes)
    for number, matrix in enumerate(stored(file, EXPERTS)):
        (name,) = [key for key in weights if f"layers.1.block_sparse_moe.experts.{number}.w2" in key]
        rows = weights[name].astype(np.float32)
        own = importance(4, rows.shape[1])[number]
        np.testing.assert_array_equal(matrix, fitted(3, Floats.of(rows), 256, own).dequantize())


def test_an_expert_without_inputs_is_fitted_without(tmp_path: Path) -> None:
    model = checkpoints.build("mixtral", tmp_path / "model")
    own = importance(4, n_columns(model, EXPERTS))
    counts = np.array([4, 0, 4, 4], np.float32)
    entry = Entry(own * counts[:, None], counts)
    write_imatrix(Imatrix(tmp_path / "i.gguf", {EXPERTS: entry}, ("words.txt",), 3, 512))
    made = convert(model, tmp_path / "out.gguf", "tq2_0", imatrix=tmp_path / "i.gguf", check=False)
    assert "; 1 matrices of experts had no inputs and are fitted without" in " ".join(made.plan.notes)
    (name,) = [key for key in checkpoints.weights("mixtral") if "layers.1.block_sparse_moe.experts.1.w2" in key]
    rows = checkpoints.weights("mixtral")[name].astype(np.float32)
    expected = fitted(3, Floats.of(rows), 256, np.ones(rows.shape[1], np.float32))
    np.testing.assert_array_equal(stored(made.out, EXPERTS)[1], expected.dequantize())


def test_a_file_of_its_own_is_verified(model: Path, imatrix: Path, tmp_path: Path) -> None:
    """Without the importance matrix verify can judge weighted tensors by their errors only; with it, by every code."""
    file = convert(model, tmp_path / "out.gguf", "tq2_0", imatrix=imatrix, check=False).out
    assert verify(model, file).problems == []

    def checked(weights: Path | None) -> TensorCheck:
        pairs, _ = paired(open_model(model), read_gguf(file).stock_tensors())
        (pair,) = [pair for pair in pairs if pair.spec.name == DOWN]
        return check_tensor(replace(pair, imatrix=None if weights is None else read_imatrix(weights)))

    for weights, encoder in ((None, ""), (imatrix, "mse, importance-weighted")):
        assert (checked(weights).verdict, checked(weights).encoder) == ("rounded", encoder)

    def damage(rows: np.ndarray) -> None:
        rows[3, :8] ^= 0b10

    patch(file, DOWN, damage)
    assert not checked(imatrix).good
    assert "rows differ from the source quantized by mse, importance-weighted" in checked(imatrix).reason
    assert len(verify(model, file, imatrix=imatrix).problems) == 1


@pytest.mark.parametrize("how", ["numpy", "compiled"])
def test_verify_tries_no_method_whose_levels_a_type_lacks(how: str, model: Path, tmp_path: Path) -> None:
    """TQ1_0's digits have no place for a fourth level."""
    file = convert(model, tmp_path / "out.gguf", "tq1_0", "absmean", check=False).out
    pairs, _ = paired(open_model(model), read_gguf(file).stock_tensors())
    (pair,) = [pair for pair in pairs if pair.spec.name == DOWN]
    with computed_by(how):
        assert check_tensor(pair).encoder == "absmean"


def test_headers_alone_can_be_planned(model: Path, imatrix: Path) -> None:
    planned = plan(model, "q2_0", "four_levels", imatrix=imatrix)
    assert sum("importance-weighted" in tensor.reason for tensor in planned.tensors) == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "absmean"}, "--method absmean takes no importance; use --method four_levels or --method mse"),
        ({"type": "f16"}, "i.gguf has no effect: mse quantizes no tensor here, since all keep their values"),
        ({"method": "four_levels"}, "--method four_levels makes 4 levels, which tq2_0 can't hold; types that hold"),
    ],
)
def test_requests_that_contradict_themselves(options: dict, complaint: str, model: Path, imatrix: Path) -> None:
    with pytest.raises(UnsupportedError, match=complaint):
        plan(model, **{"type": "tq2_0", **options}, imatrix=imatrix)


def test_another_models_importance(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    other = written(tmp_path / "other.gguf", attn_qkv=importance(1, 256))
    with pytest.raises(UnsupportedError, match=r"other.gguf: has no inputs for any of the \d+ tensors to quantize"):
        plan(model, "tq2_0", imatrix=other)
    longer = written(tmp_path / "longer.gguf", ffn_down=importance(1, 33))
    out = tmp_path / "out.gguf"
    code, _, errors = run_captured(
        monkeypatch, capsys, "convert", model, out, "--type", "tq2_0", "--imatrix", longer, "--no-check"
    )
    assert code == 1
    assert errors.startswith(f"error: {longer}: has 1 x 33 values for {DOWN}, whose inputs here are 1 x ")
    assert len(errors.splitlines()) == 1
    assert not out.exists()

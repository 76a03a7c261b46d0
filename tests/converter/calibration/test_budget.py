"""`convert --budget --method gptq`: what is chosen, what is fitted, and a size that holds."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import gguf
import pytest

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES, Recipe
from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.converter.calibration.kept import folder_for
from tritgguf.converter.planning.calibration import TYPES
from tritgguf.converter.verification.verification import verify
from tritgguf.runtime.cli import verbosity

pytest.importorskip("torch", reason="needs the ptq extra")

TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
GPTQ = ("--method", "gptq", "--calibration", TEXT, "--calibration-chunks", "6", "--threads", "1", "--no-check")
FITTED = {name.upper() for name in TYPES}
# One that is rotated, which puts a key into its file, and one that isn't, since its output layer is its embeddings.
MODELS = {"rotated": RECIPES["llama-gqa"], "tied": Recipe("LlamaForCausalLM", "float", layers=2, tied=True)}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build(request.param, tmp_path_factory.mktemp("model") / request.param, MODELS[request.param])


def test_the_file_has_fitted_layers_within_its_bytes(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out.gguf"
    code, printed, err = run_captured(monkeypatch, capsys, "convert", model, out, "--budget", "4bpw", *GPTQ, "--json")
    assert code == 0, err
    found = json.loads(printed)
    reader = gguf.GGUFReader(out)
    weights = sum(tensor.n_elements for tensor in reader.tensors)
    assert 0.8 * 4 * weights / 8 < out.stat().st_size <= 4 * weights / 8
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    fitted = {name for name, kind in types.items() if kind in FITTED and name.startswith("blk.")}
    assert fitted
    reasons = {tensor["name"]: tensor["reason"] for tensor in found["tensors"]}
    assert {name for name, reason in reasons.items() if "chosen by gptq" in reason} == fitted
    assert ", less what gptq usually gains" in found["notes"][0]
    assert verify(model, out).problems == []
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_a_stopped_run_measures_the_same_and_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    model, out = checkpoints.build("tied", tmp_path / "model", MODELS["tied"]), tmp_path / "out" / "out.gguf"
    out.parent.mkdir()

    def stop(line: str) -> None:
        if line.startswith("block 1 of 2: block error"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verbosity, "note", stop)
        code, _, err = run_captured(patch, capsys, "convert", model, out, "--budget", "4bpw", *GPTQ)
    assert code == 128 + signal.SIGINT, err
    assert list(out.parent.iterdir()) == [folder_for(out)]
    code, _, err = run_captured(monkeypatch, capsys, "convert", model, out, "--budget", "4bpw", *GPTQ)
    assert code == 0, err
    assert f"note: goes on with the blocks in {folder_for(out)}\n" in err
    assert list(out.parent.iterdir()) == [out]


def test_where_no_layer_is_to_be_fitted_nothing_is(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, plain = tmp_path / "out.gguf", tmp_path / "plain.gguf"
    text = ("--calibration", TEXT)
    code, _, err = run_captured(monkeypatch, capsys, "convert", model, out, "--budget", "16.5bpw", *GPTQ)
    assert code == 0, err
    assert "no layer has a type that gptq fits within this budget" in err
    code, _, err = run_captured(
        monkeypatch, capsys, "convert", model, plain, "--budget", "16.5bpw", "--no-check", *text
    )
    assert code == 0, err
    assert out.read_bytes() == plain.read_bytes()

"""`convert`'s verdict on a conversion with loss: its figures, its words, and when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

from tests.command_line import run_captured
from tests.paths import ROOT
from tests.report_reader import Report
from tritgguf.converter import convert, quantize
from tritgguf.converter.export.run import form_named
from tritgguf.runtime.measure.evaluation import evaluate

DEMO = ROOT / "vendor" / "demo-model"
LINEAR = ("_proj.weight",)


@pytest.fixture(autouse=True)
def _judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite's other tests do without."""
    monkeypatch.delenv("TRITGGUF_VERDICT")


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as plain floats."""
    folder = tmp_path_factory.mktemp("floats") / "model"
    quantize(DEMO, folder, form_named(None))
    return folder


def disturbed(floats: Path, folder: Path, noise: float) -> Path:
    """The demo model with Gaussian noise on each linear layer, `noise` times as strong as its weights."""
    folder.mkdir()
    for file in floats.iterdir():
        if file.suffix == ".safetensors":
            generator = np.random.default_rng(1)
            tensors = load_file(file)
            for name in sorted(tensors):
                if name.endswith(LINEAR):
                    weights = tensors[name].astype(np.float32)
                    weights += noise * weights.std() * generator.standard_normal(weights.shape, np.float32)
                    tensors[name] = weights.astype(np.float16)
            save_file(tensors, folder / file.name, {"format": "pt"})
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def assert_a_card(text: str, verdict: dict) -> None:
    """The hub's own reader finds the front matter, and the figures are those of the verdict."""
    data = ModelCard(text).data
    assert (data.library_name, data.tags) == ("gguf", ["gguf", "tritgguf"])
    assert f"## Quality: {verdict['word']}" in text
    assert f"| mean KL divergence | {verdict['file']['kld_mean']:.3g} ± " in text
    for one in verdict["completions"]:
        assert all(f"    {line}" in text for line in (one["prompt"] + one["text"]).splitlines())


@pytest.mark.parametrize(("noise", "word"), [(0.05, "usable"), (2.0, "useless")])
def test_the_verdict_is_eval_s(noise: float, word: str, floats: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    model, out, page = disturbed(floats, tmp_path / "model", noise), tmp_path / "out.gguf", tmp_path / "page.html"
    command = ("convert", model, out, "--type", "tq2_0", "--method", "mse", "--html", page)
    code, printed, err = run_captured(monkeypatch, capsys, *command, "--json")
    assert code == 0, err
    found = json.loads(printed)["verdict"]
    convert(model, tmp_path / "f16.gguf", "f16", check=False)
    expected = evaluate([out], against=tmp_path / "f16.gguf", n_chunks=4)
    assert expected.base is not None
    assert {**found["file"], "path": ""} == {**expected.files[0].as_json(), "path": ""}
    assert {**found["source"], "path": ""} == {**expected.base.as_json(), "path": ""}
    assert found["word"] == word
    assert [bool(one["text"]) for one in found["completions"]] == [True] * 3
    report = Report(page)
    assert f"<strong>Verdict</strong>: {word}: perplexity" in report.text
    assert all(f"{one['prompt']}<strong>" in report.text for one in found["completions"])
    card = tmp_path / "README.md"
    code, printed, _ = run_captured(monkeypatch, capsys, *command, "--card", card, "--force")
    assert code == 0
    *_, line, report_line, card_line = printed.splitlines()
    assert line.startswith(f"Verdict: {word}: perplexity ")
    assert line.endswith(" on 1,020 tokens")
    assert (report_line, card_line) == (f"report: {page}", f"model card: {card}")
    assert_a_card(card.read_text(), found)


def test_no_verdict_where_nothing_is_lost_or_none_is_wanted(floats: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, printed, err = run_captured(monkeypatch, capsys, "convert", DEMO, tmp_path / "exact.gguf", "--json")
    assert (code, json.loads(printed)["verdict"]) == (0, None), err
    model = disturbed(floats, tmp_path / "model", 0.05)
    command = ("convert", model, tmp_path / "lossy.gguf", "--type", "tq2_0", "--no-verdict")
    code, printed, _ = run_captured(monkeypatch, capsys, *command)
    assert code == 0
    assert "Verdict" not in printed


def test_a_model_that_cannot_be_judged_is_converted_all_the_same(
    make_model, tmp_path: Path, monkeypatch, capsys
) -> None:
    model, out = make_model(tmp_path / "short.gguf", n_ctx_train=64), tmp_path / "out.gguf"
    command = ("convert", model, out, "--type", "q4_0", "--allow-lossy", "--no-check")
    code, printed, err = run_captured(monkeypatch, capsys, *command)
    assert code == 0, err
    assert out.exists()
    assert "Verdict" not in printed
    assert err.splitlines()[-1].startswith("note: no verdict on what is left of the model: ")
    assert "was trained for a context of 64 tokens" in err

"""`tritgguf verify` on the command line, and what it compares in the runtime: chat templates and logits."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import checkpoints, packed_checkpoints
from tests.command_line import run_captured
from tests.gguf_edit import patch, rewrite
from tritgguf.converter import convert, form_named, quantize
from tritgguf.converter.gguf_io.metadata import string
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.verification.verification import verify
from tritgguf.runtime.measure.logits_check import (
    CONVERSATIONS,
    LogitsCheck,
    _compared,
    compare_templates,
    logits_problem,
)

TEMPLATE = "tokenizer.chat_template"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("llama-gqa", tmp_path_factory.mktemp("models") / "llama-gqa")


@pytest.fixture
def out(model: Path, tmp_path: Path) -> Path:
    return convert(model, tmp_path / "out.gguf", "tq2_0", check=False).out


def test_a_good_file(model: Path, out: Path, monkeypatch, capsys) -> None:
    code, said, err = run_captured(monkeypatch, capsys, "verify", model, out)
    assert (code, err) == (0, "")
    assert "14 TQ2_0: quantized by mse, relative error up to 0." in said
    assert "5 F32: every value is the source's\n" in said
    assert "Metadata: every key that the model needs is correct." in said
    assert "Token ids: equal on 195 test strings." in said
    assert f"Chat template: {2 * len(CONVERSATIONS)} conversations render the same." in said


def test_a_bad_file(model: Path, out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def flip(rows: np.ndarray) -> None:
        rows[5, 6] ^= 1

    bad = rewrite(patch(out, "blk.0.attn_k.weight", flip), tmp_path / "bad.gguf", keys={"llama.rope.freq_base": 5e5})
    code, said, err = run_captured(monkeypatch, capsys, "verify", model, bad)
    assert code == 1
    assert "wrong: blk.0.attn_k.weight (TQ2_0): 1 of 128 rows differ from the source quantized by mse" in said
    assert "metadata: llama.rope.freq_base is 500000.0; expected 10000.0" in said
    assert err.startswith("error: bad.gguf differs from the model: blk.0.attn_k.weight (TQ2_0): 1 of 128 rows")
    assert err.endswith("(and 1 more); convert the model again\n")
    assert err.count("\n") == 1


def test_every_tensor(model: Path, out: Path, monkeypatch, capsys) -> None:
    _, said, _ = run_captured(monkeypatch, capsys, "verify", model, out, "--tensors")
    assert "rounded    blk.1.ffn_up.weight (TQ2_0): quantized by mse (relative error 0." in said
    assert "exact      output_norm.weight (F32): every value is the source's (relative error 0)" in said


def test_json(model: Path, out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, said, err = run_captured(monkeypatch, capsys, "verify", model, out, "--json")
    found = json.loads(said)
    assert code == 0
    assert (found["good"], found["problems"], found["strings_checked"], found["logits"]) == (True, [], 195, None)
    assert len(found["tensors"]) == 21
    assert json.loads(err.splitlines()[-1])["stage"] == "comparing"
    bad = rewrite(out, tmp_path / "bad.gguf", keys={TEMPLATE: "{{ messages[0].content }}"})
    code, said, err = run_captured(monkeypatch, capsys, "verify", model, bad, "--json")
    found = json.loads(said)
    assert code == 1
    assert found["good"] is False
    assert found["problems"] == [found["chat_template"]]
    assert err.splitlines()[-1].startswith("error: bad.gguf differs from the model: tokenizer.chat_template renders")


def test_something_else_in_one_line(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for path in (tmp_path / "nothing", model, model / "config.json"):
        code, said, err = run_captured(monkeypatch, capsys, "verify", model, path)
        assert (code, said) == (1, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_the_installed_command(model: Path, out: Path) -> None:
    command = [sys.executable, "-m", "tritgguf", "verify", str(model), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONUTF8": "1"})
    assert "Chat template: 8 conversations render the same." in done.stdout


# --- chat templates ------------------------------------------------------------------------------------------------


def test_templates(model: Path, out: Path) -> None:
    keys = read_gguf(out).metadata
    text = str(keys[TEMPLATE].data)
    spelled_otherwise = {**keys, TEMPLATE: string("{# the same #}" + text)}
    assert compare_templates(keys, spelled_otherwise).problem is None
    assert compare_templates(keys, keys).n_rendered == 2 * len(CONVERSATIONS)
    no_prompt = compare_templates(keys, {**keys, TEMPLATE: string(text.replace("add_generation_prompt", "false"))})
    assert no_prompt.n_rendered == 0
    assert no_prompt.problem is not None
    assert no_prompt.problem.startswith("tokenizer.chat_template renders '")
    none = {key: value for key, value in keys.items() if key != TEMPLATE}
    assert compare_templates(none, none).n_rendered == 0
    assert "is missing, but the model has" in str(compare_templates(keys, none).problem)
    assert "that the model doesn't have" in str(compare_templates(none, keys).problem)
    named = {**keys, f"{TEMPLATE}.tool_use": string("{{ messages | length }}")}
    assert compare_templates(named, named).n_rendered == 4 * len(CONVERSATIONS)
    broken = {**keys, TEMPLATE: string("{% if %}")}
    assert compare_templates(broken, broken).problem is None
    assert "isn't valid J" in str(compare_templates(keys, broken).problem)


def test_another_bos_changes_what_is_rendered(out: Path) -> None:
    keys = {**read_gguf(out).metadata, TEMPLATE: string("{{ bos_token }}{{ messages[0].content }}")}
    other = dict(keys)
    other["tokenizer.ggml.bos_token_id"] = other["tokenizer.ggml.eos_token_id"]
    assert keys["tokenizer.ggml.bos_token_id"] != other["tokenizer.ggml.bos_token_id"]
    assert compare_templates(keys, other).problem is not None


# --- logits ----------------------------------------------------------------------------------------------------------


def test_without_torch_the_remedy_is_told(model: Path, out: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = run_captured(monkeypatch, capsys, "verify", model, out, "--logits")
    assert code == 1
    assert err == 'error: --logits needs torch, which isn\'t installed: pip install "tritgguf[golden]"\n'


def test_logits_need_a_folder(out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    copy = convert(out, tmp_path / "copy.gguf", "auto", check=False).out
    code, _, err = run_captured(monkeypatch, capsys, "verify", out, copy, "--logits")
    assert code == 1
    assert err == "error: out.gguf isn't a Hugging Face folder with a tokenizer, which --logits needs\n"


def test_figures_of_known_logits() -> None:
    """Two tokens: with probabilities 1/2, 1/2 for the reference and 4/5, 1/5 here, and once the same."""
    reference = np.log(np.float32([[0.5, 0.5, 1e-30], [0.2, 0.8, 1e-30]]))
    found = np.log(np.float32([[0.8, 0.2], [0.2, 0.8]]))  # the reference pads its vocabulary
    figures = _compared(reference[:, :2], found)
    assert figures.n_tokens == 2
    assert figures.kl_divergence == pytest.approx((0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)) / 2, rel=1e-5)
    assert figures.relative_error == pytest.approx(
        np.linalg.norm(found[0] - reference[0, :2]) / np.linalg.norm(reference[:, :2]), rel=1e-5
    )
    assert figures.same_top1 == 1.0
    assert _compared(reference, found).same_top1 == 1.0


def test_right_weights_with_other_logits_are_a_problem(model: Path, tmp_path: Path) -> None:
    exact = verify(model, convert(model, tmp_path / "exact.gguf", "bf16", embedding_type="f32").out)
    lossy = verify(model, convert(model, tmp_path / "lossy.gguf", "tq2_0").out)
    far, near = LogitsCheck(8, 0.3, 0.1, 0.9), LogitsCheck(8, 0.02, 1e-3, 1.0)
    assert "though the weights are correct" in str(logits_problem(exact, far))
    assert logits_problem(exact, near) is None
    assert logits_problem(lossy, far) is None


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the golden extra")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-gqa", "bf16"),
        ("llama-tied", "tq2_0"),
        ("2b4t-online", "tq2_0"),
        ("falcon3", "q2_k"),
        ("14b-seed", "f16"),
    ],
)
def test_logits_against_transformers(name: str, kind: str, tmp_path: Path, monkeypatch, capsys) -> None:
    module = packed_checkpoints if name in packed_checkpoints.PACKED else checkpoints
    folder = module.build(name, tmp_path / "model")
    file = convert(folder, tmp_path / "out.gguf", kind).out
    code, out, _ = run_captured(monkeypatch, capsys, "verify", folder, file, "--logits", "--json")
    figures = json.loads(out)["logits"]
    assert code == 0, out
    assert figures["tokens"] == 64
    assert figures["relative_error"] < 0.05
    assert figures["kl_divergence"] < 0.02
    assert figures["same_top1"] > 0.8


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the golden extra")
@pytest.mark.parametrize("name", ["llama-llama3", "llama-yarn-betas", "qwen2-yarn", "qwen3"])
def test_transformers_computes_what_a_gguf_file_does_after_the_way_back(
    name: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    file = convert(checkpoints.build(name, tmp_path / "model"), tmp_path / "out.gguf", "f16").out
    folder = quantize(file, tmp_path / "folder", form_named(None, dtype="f32")).out
    code, out, _ = run_captured(monkeypatch, capsys, "verify", folder, file, "--logits", "--json")
    assert code == 0, out
    assert json.loads(out)["logits"]["relative_error"] < 2e-3


def test_gguf_edit_really_edits(out: Path, tmp_path: Path) -> None:
    """The mutants above are what they claim to be, by gguf's own reader."""
    again = gguf.GGUFReader(rewrite(out, tmp_path / "again.gguf", keys={"general.name": "x"}))
    before = gguf.GGUFReader(out)
    assert again.fields["general.name"].contents() == "x"
    assert [t.name for t in again.tensors] == [t.name for t in before.tensors]
    assert all(np.array_equal(a.data, b.data) for a, b in zip(again.tensors, before.tensors, strict=True))

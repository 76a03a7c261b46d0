"""The demo model in vendor/demo-model: small, packed, converted exactly, and the same model in every ternary type.

tests/golden/demo_model.npz holds held-out rows of token ids and what transformers' own bitnet layers make of them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import tritgguf.runtime
from tests import gguf_weights
from tests.command_line import run_captured
from tritgguf.converter import convert, quantize
from tritgguf.runtime.chat.session import Session

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "vendor" / "demo-model"
TRANSCRIPTS = ROOT / "docs" / "demo-model.md"
TYPES = ("tq2_0", "tq1_0", "q2_0", "q2_k")
# Kernels round activations each in their own way: tokens whose logits are nearer than this may change places.
ROUNDING = 0.1


@pytest.fixture(scope="module", params=TYPES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / f"{request.param}.gguf"
    result = convert(MODEL, out, type=request.param)
    assert all(tensor.exact for tensor in result.plan.tensors)
    return out


@pytest.fixture(scope="module")
def session(converted: Path) -> Session:
    with tritgguf.runtime.open(converted, n_ctx=512) as opened:
        yield opened


def test_the_checkpoint_is_small_and_packed() -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 8_000_000
    assert config["quantization_config"]["linear_class"] == "bitlinear"
    tensors = load_file(MODEL / "model.safetensors")
    packed = [tensor for name, tensor in tensors.items() if "_proj.weight" in name and "scale" not in name]
    assert len(packed) == 7 * config["num_hidden_layers"]
    assert all(tensor.dtype == np.uint8 and tensor.shape[1] % 256 == 0 for tensor in packed)


def test_every_weight_of_the_file_is_the_checkpoints(converted: Path) -> None:
    stored = load_file(MODEL / "model.safetensors")
    held = gguf_weights.read(converted)
    names = [name for name in stored if not name.endswith("_scale")]
    assert sorted(held) == sorted(names)
    for name in names:
        values = stored[name].astype(np.float32)
        if name + "_scale" in stored:
            codes = np.concatenate([stored[name] >> shift & 3 for shift in (0, 2, 4, 6)]).astype(np.float32) - 1
            values = codes / stored[name + "_scale"]
        np.testing.assert_array_equal(held[name], values, err_msg=name)


def test_perplexity_is_that_of_transformers(session: Session) -> None:
    golden = np.load(ROOT / "tests" / "golden" / "demo_model.npz")
    losses = []
    for ids, wanted in zip(golden["ids"][:6], golden["wanted"][:6], strict=True):  # more rows show the same, slower
        n_tokens = int(np.flatnonzero(wanted >= 0)[-1]) + 1
        judged = np.flatnonzero(wanted[:n_tokens] >= 0)
        losses.append(nll(session.logits(ids[:n_tokens].tolist())[judged], wanted[judged]))
    found = np.concatenate(losses)
    assert np.exp(found.mean()) == pytest.approx(np.exp(golden["losses"][: len(found)].mean()), rel=0.01)


def nll(logits: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihoods, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(wanted)), wanted]


def test_the_metrics_were_reached() -> None:
    metrics = json.loads((MODEL / "metrics.json").read_text())
    assert metrics["float_perplexity"] < metrics["ternary_perplexity"] < 1.5 * metrics["float_perplexity"]
    assert metrics["checkpoint_perplexity"] == pytest.approx(metrics["ternary_perplexity"], rel=0.01)


def conversations() -> list[list[dict[str, str]]]:
    """The transcripts in the docs, as messages."""
    found = []
    for block in re.findall(r"^```text\n(.*?)^```", TRANSCRIPTS.read_text(encoding="utf-8"), re.S | re.M):
        lines = block.splitlines()
        roles = ["user" if line.startswith("> ") else "assistant" for line in lines]
        found.append(
            [{"role": role, "content": line.removeprefix("> ")} for role, line in zip(roles, lines, strict=True)]
        )
    return found


def test_there_are_ten_transcripts_of_two_turns_and_more() -> None:
    found = conversations()
    assert len(found) >= 10
    for messages in found:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)


def test_the_transcripts_are_the_greedy_answers(session: Session) -> None:
    for messages in conversations():
        for turn in range(1, len(messages), 2):
            prompt = session.chat_tokens(messages[:turn])
            answer = [*session.tokenize(messages[turn]["content"]), session.model.vocab.eos]
            logits = session.logits([*prompt, *answer])[len(prompt) - 1 : -1]
            lost = logits.max(axis=1) - logits[np.arange(len(answer)), answer]
            assert lost.max() < ROUNDING, (messages[turn]["content"], lost.max())


def test_chat_takes_the_demo_model_when_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    code, _, complaint = run_captured(monkeypatch, capsys, "chat", "--prompt", "Hi")
    assert code == 1
    assert complaint.count("\n") == 1
    assert "make demo" in complaint

    (tmp_path / "models").mkdir()
    convert(MODEL, tmp_path / "models" / "demo.gguf", type="tq2_0")
    first, *rest = conversations()[0]
    asked = [first["content"], *(message["content"] for message in rest if message["role"] == "user")]
    options = [word for text in asked for word in ("--prompt", text)]
    code, answers, questions = run_captured(monkeypatch, capsys, "chat", "--temperature", 0, *options)
    assert code == 0
    assert questions.splitlines() == [f"> {text}" for text in asked]
    assert len(answers.splitlines()) == len(asked)


def test_by_way_of_base3_it_becomes_the_same_file(tmp_path: Path) -> None:
    """Groups of 64 that share one scale fill blocks of 256 all the same."""
    quantize(MODEL, tmp_path / "base3", "absmean-g64")
    for source, out in ((MODEL, "straight"), (tmp_path / "base3", "around")):
        result = convert(source, tmp_path / f"{out}.gguf", type="tq2_0")
        assert all(tensor.exact for tensor in result.plan.tensors if tensor.spec.role == "linear")
    straight, around = (gguf_weights.read(tmp_path / f"{out}.gguf") for out in ("straight", "around"))
    for name in straight:
        if "_proj" in name:
            np.testing.assert_array_equal(around[name], straight[name], err_msg=name)

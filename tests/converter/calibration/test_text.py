"""Calibration text becomes the chunks that transformers' own tokenizer and template would make."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import Keys

from tests import checkpoints
from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.converter.calibration.text import DEFAULT_TEXT, calibration_chunks
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.metadata import string
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.tokenizer import SourceTokenizer
from tritgguf.runtime.measure.chunks import DEFAULT_TEXT as MEASURED_TEXT

TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
GPTQ = ("--type", "q2_0", "--method", "gptq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("llama-tied", tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> SourceTokenizer:
    found = open_model(folder).tokenizer
    assert found is not None
    return found


def chunks(tokenizer: SourceTokenizer, *paths: Path, n_chunks: int = 4, seed: int = 0) -> np.ndarray:
    return calibration_chunks(tokenizer, Calibration(paths, n_chunks, seed))


def test_chunks_are_pieces_of_the_text(tokenizer: SourceTokenizer) -> None:
    found = chunks(tokenizer, TEXT)
    ids = tokenizer.encode(TEXT.read_text())
    pieces = [ids[start : start + 512] for start in range(0, len(ids), 512)]
    assert found.shape == (4, 512)
    assert [pieces.index(list(chunk)) for chunk in found.tolist()] != [0, 1, 2, 3]
    np.testing.assert_array_equal(found, chunks(tokenizer, TEXT))
    assert (found != chunks(tokenizer, TEXT, seed=1)).any()


def test_files_take_turns(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "digits.txt").write_text("0123456789 " * 400)
    found = chunks(tokenizer, TEXT, tmp_path / "digits.txt", n_chunks=6)
    digits = [len(set(chunk.tolist())) < 15 for chunk in found]
    assert digits == [False, True] * 3


def test_messages_go_through_the_model_s_template(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi " * 200}, {"role": "assistant", "content": "Yes " * 200}]
    lines = [{"messages": messages}] * 3 + [{"text": "and so on " * 100}]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    text = "".join(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages)
    ids = tokenizer.encode(text) * 3 + tokenizer.encode("and so on " * 100 + "\n")
    wanted = [ids[start : start + 512] for start in range(0, len(ids) - 511, 512)]
    found = chunks(tokenizer, tmp_path / "chat.jsonl", n_chunks=len(wanted))
    assert sorted(found.tolist()) == sorted(wanted)


def with_template(tokenizer: SourceTokenizer, template: str) -> SourceTokenizer:
    return replace(tokenizer, metadata={**tokenizer.metadata, Keys.Tokenizer.CHAT_TEMPLATE: string(template)})


STRICT = """{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}
{%- for message in messages %}{{ message['content'] }}{% endfor %}"""


def test_conversations_that_the_template_refuses_are_left_out(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    path, told = tmp_path / "chat.jsonl", list[str]()
    taken, refused = ({"messages": [{"role": role, "content": "so on " * 600}]} for role in ("user", "assistant"))
    calibration = Calibration((path,), 2)
    path.write_text("\n".join(map(json.dumps, [refused, taken, taken, taken, refused])))
    found = calibration_chunks(with_template(tokenizer, STRICT), calibration, told.append)
    assert told == [
        f"2 of 5 conversations are left out, the first: {path}, line 1: the model's chat template refuses it (the user "
        "begins)"
    ]
    path.write_text("\n".join(map(json.dumps, [taken] * 3)))
    np.testing.assert_array_equal(found, calibration_chunks(with_template(tokenizer, STRICT), calibration))
    for rows in ([refused, taken, refused], [refused] * 9 + [taken] * 20):
        path.write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(
            SourceError, match=r"chat.jsonl, line 1: the model's chat template refuses it \(the user be"
        ):
            calibration_chunks(with_template(tokenizer, STRICT), calibration)


def test_the_date_of_a_template_is_always_the_same(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "so on " * 600}]}))
    dated, fixed = ("{{ strftime_now('%d %B %Y') }}", "01 July 2025")
    found = [
        calibration_chunks(with_template(tokenizer, f"{date}{STRICT}"), Calibration((tmp_path / "chat.jsonl",), 2))
        for date in (dated, fixed)
    ]
    np.testing.assert_array_equal(*found)


def test_bos_comes_first_where_the_model_wants_it(tmp_path: Path) -> None:
    tokenizer = open_model(checkpoints.build("llama-gqa", tmp_path / "model")).tokenizer
    assert tokenizer is not None
    (bos,) = tokenizer.encode("<|begin_of_text|>")
    assert (chunks(tokenizer, TEXT)[:, 0] == bos).all()


def test_the_default_text_is_enough_and_none_that_models_are_measured_on(tokenizer: SourceTokenizer) -> None:
    assert chunks(tokenizer, n_chunks=256).shape == (256, 512)
    documents = [json.loads(line) for line in DEFAULT_TEXT.read_text("utf-8").splitlines()]
    assert {tuple(document) for document in documents} == {("text",), ("messages",)}
    calibration = {line for document in documents for line in document.get("text", "").splitlines() if len(line) > 50}
    measured = {line for line in MEASURED_TEXT.read_text("utf-8").splitlines() if len(line) > 50}
    assert len(calibration) > 1000
    assert len(measured) > 100
    assert not calibration & measured


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("too short", r"text.jsonl: has 0 chunks of 512 of this model's tokens; expected 4: give more text"),
        ('{"text": 5}\n', r"text.jsonl, line 1: expected an object with \"text\", or \"messages\""),
        ('{"text": "a"}\n{"messages": [{"role": "user"}]}', r"text.jsonl, line 2: expected an object"),
        ("{", r"text.jsonl, line 1: isn't JSON; expected an object"),
        ("\udcff", r"text.jsonl: can't be read \(isn't UTF-8 text\)"),
    ],
)
def test_unusable_text_is_refused(content: str, message: str, tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(
        (f'{{"text": "{content}"}}' if content == "too short" else content).encode("utf-8", "surrogateescape")
    )
    with pytest.raises(SourceError, match=message):
        chunks(tokenizer, path)


def test_a_missing_file_is_told(tokenizer: SourceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none.txt: can't be read \(No such file or directory\); give another file"):
        chunks(tokenizer, tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--type", "tq2_0", "--seed", 1), "--calibration, --calibration-chunks, --seed, --gptq-without, --untie and"),
        (("--method", "gptq"), "--method gptq fits codes for tq1_0, tq2_0, q2_0, q2_k; found auto: ask for one of"),
        (("--type", "f16", "--tensor-type", "attn=q8_0", "--method", "gptq"), "--method gptq fits codes for tq1_0, "),
        ((*GPTQ, "--gptq-without", "refit,luck"), "--gptq-without luck: unknown step; expected one of rotation,"),
        ((*GPTQ, "--untie", "--gptq-without", "rotation"), "--untie is for the rotation, which --gptq-without leaves"),
        ((*GPTQ, "--seed", -1), "--seed -1: expected 0 or more"),
        ((*GPTQ, "--tune", 0), "--tune 0: expected at least 1 step"),
        (("--tune", 10), "--calibration, --calibration-chunks, --seed, --gptq-without, --untie and --tune belong to"),
        ((*GPTQ, "--calibration-chunks", 1), "--calibration-chunks 1: expected at least 2, of which one is held out"),
    ],
)
def test_senseless_options_are_refused(
    options: tuple[object, ...], message: str, folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    code, _, errors = run_captured(monkeypatch, capsys, "convert", folder, tmp_path / "out.gguf", *options)
    assert code == 1
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("options", [GPTQ, ("--budget", "8bpw", "--method", "gptq")])
def test_without_torch_the_remedy_is_told(options: tuple[str, ...], tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    model, out = checkpoints.build("llama-gqa", tmp_path / "model"), tmp_path / "out.gguf"
    code, _, errors = run_captured(monkeypatch, capsys, "convert", model, out, *options, "--calibration", TEXT)
    assert code == 1
    assert errors == 'error: --method gptq needs torch, which isn\'t installed: pip install "tritgguf[ptq]"\n'
    assert list(tmp_path.iterdir()) == [model]

"""`python -m tritgguf.runtime.engine.token_ids`: ids from a child process, also before the tensor data is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from llama_cpp import Llama

from tritgguf.runtime.engine.gguf_header import read_header

TEXTS = ["", "hello the world", "<|im_start|>user\nhi<|im_end|>", "Grüße 日本 🙂", "a\0b\r\n"]


def run(stdin):
    command = [sys.executable, "-m", "tritgguf.runtime.engine.token_ids"]
    return subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=60)


def asked(path, texts):
    return json.dumps({"file": str(path), "texts": texts})


@pytest.fixture(scope="module")
def expected(random_model):
    llama = Llama(str(random_model), vocab_only=True, verbose=False)
    ids = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in TEXTS]
    llama.close()
    return ids


@pytest.mark.parametrize("part", ["whole", "without data", "without tensor list"])
def test_ids_are_those_of_llama_cpp_python(tmp_path, random_model, expected, part):
    data, values_end = random_model.read_bytes(), read_header(random_model).values_end
    path = tmp_path / "model.gguf"
    path.write_bytes(
        data[: {"whole": None, "without data": values_end + 1200, "without tensor list": values_end}[part]]
    )
    child = run(asked(path, TEXTS))
    assert (child.returncode, child.stderr) == (0, b"")
    assert json.loads(child.stdout) == {"ids": expected, "expected": None}


def test_bos_is_added_as_the_file_says(tmp_path, make_model):
    path = make_model(tmp_path / "bos.gguf", sentencepiece=True, add_bos=True)
    llama = Llama(str(path), vocab_only=True, verbose=False)
    ids = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in TEXTS]
    llama.close()
    assert [text_ids[0] for text_ids in ids] == [1] * len(TEXTS)
    assert json.loads(run(asked(path, TEXTS)).stdout) == {"ids": ids, "expected": None}


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        ("[1]", "isn't the expected JSON"),
        ('{"a": 1}', "isn't the expected JSON"),
        ("nonsense", "isn't the expected JSON"),
        ('{"file": 1, "texts": []}', "names no file"),
        ('{"file": "x", "texts": [1]}', "its texts aren't strings"),
        ('{"file": "MODEL", "texts": ["\\ud800"]}', "isn't valid Unicode"),
    ],
)
def test_bad_input_is_one_line(random_model, stdin, message):
    child = run(stdin.replace("MODEL", str(random_model)))
    assert (child.returncode, child.stdout) == (1, b"")
    assert child.stderr.decode().count("\n") == 1
    assert message in child.stderr.decode()


def test_bad_files_are_one_line_that_names_them(tmp_path, make_model):
    twice = make_model(tmp_path / "twice.gguf", tokens=["x"] * 288)
    unknown = make_model(tmp_path / "unknown.gguf", tokenizer__ggml__pre="guess")
    for path in (tmp_path / "missing.gguf", twice, unknown):
        child = run(asked(path, ["a"]))
        assert (child.returncode, child.stdout) == (1, b"")
        assert child.stderr.decode().startswith(f"error: {path}: ")
        assert child.stderr.decode().count("\n") == 1

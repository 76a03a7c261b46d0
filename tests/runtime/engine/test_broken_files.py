"""Files that can't be loaded: one line that names the file, no crash. Crashes are looked for in a child process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.gguf_header import read_header

TOKENS = [f"t{number}" for number in range(288)]


def refuse(path, *words):
    with pytest.raises(EngineError) as caught:
        tritgguf.runtime.open(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_a_missing_file_and_a_folder(tmp_path):
    refuse(tmp_path / "none.gguf", "no such file")
    refuse(tmp_path, "is a folder")


@pytest.mark.parametrize(
    "data", [b"", b"GG", b"# A text\n" * 50, b"\x80\x02" + bytes(100)], ids=["empty", "short", "text", "pickle"]
)
def test_a_file_that_is_no_gguf(tmp_path, data):
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    refuse(path, "not a GGUF file")


def test_a_path_that_cannot_be_opened(tmp_path, random_model):
    refuse(random_model / "below-a-file.gguf", "can't be read (Not a directory)")


@pytest.mark.skipif(os.name != "posix", reason="no named pipes")
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    refuse(tmp_path / "pipe.gguf", "isn't a regular file")


def test_a_failed_assertion_in_llama_cpp_ends_a_program_with_one_line():
    code = (
        "from tritgguf.runtime.engine.backend import exit_on_native_abort, libggml\n"
        "exit_on_native_abort()\n"
        "libggml.ggml_abort(b'/some/folder/ops.cpp', 12, b'assertion %d', 34)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    reason = "ops.cpp:12: assertion 34"
    causes = "a bug in it, too little memory or a damaged file"
    expected = f"error: llama.cpp stopped itself: {reason}; the cause may be {causes}\n"
    assert (child.returncode, child.stdout, child.stderr) == (1, "", expected)


def test_versions_from_the_past_the_future_and_big_endian(tmp_path, random_model):
    data = bytearray(random_model.read_bytes())
    path = tmp_path / "version.gguf"
    for version, words in ((b"\1\0\0\0", "GGUF version 1"), (b"\4\0\0\0", "version 4"), (b"\0\0\0\3", "big-endian")):
        data[4:8] = version
        path.write_bytes(data)
        refuse(path, words, "expected GGUF version 2 or 3")


@pytest.mark.parametrize("where", ["preamble", "keys", "tokens", "tensor list", "data", "last byte"])
def test_a_file_cut_off(tmp_path, random_model, where):
    data = random_model.read_bytes()
    values_end = read_header(random_model).values_end
    sizes = {"preamble": 20, "keys": 100, "tokens": values_end - 3000, "tensor list": values_end + 100}
    sizes |= {"data": len(data) // 2, "last byte": len(data) - 1}
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: sizes[where]])
    refuse(path)


def test_an_unknown_architecture(tmp_path, make_model):
    refuse(make_model(tmp_path / "m.gguf", architecture="perceptron"), "unknown model architecture: 'perceptron'")


def test_an_unknown_pre_tokenizer(tmp_path, make_model):
    refuse(make_model(tmp_path / "m.gguf", tokenizer__ggml__pre="guess"), "unknown pre-tokenizer type: 'guess'")


def test_a_wrong_shape_and_a_missing_tensor(tmp_path, make_model, random_tensors):
    tensors = dict(random_tensors)
    tensors["blk.1.ffn_up.weight"] = np.zeros((95, 288), np.float32)
    refuse(make_model(tmp_path / "shape.gguf", tensors), "blk.1.ffn_up.weight", "wrong shape")
    del tensors["blk.1.ffn_up.weight"]
    refuse(make_model(tmp_path / "missing.gguf", tensors), "blk.1.ffn_up.weight")


def test_a_token_twice_in_the_vocabulary(tmp_path, make_model):
    refuse(
        make_model(tmp_path / "m.gguf", tokens=[*TOKENS[:-1], "t5"]),
        "'t5' appears in tokenizer.ggml.tokens more than once",
    )


def test_a_sentencepiece_vocabulary_without_bytes(tmp_path, make_model):
    refuse(make_model(tmp_path / "m.gguf", tokens=TOKENS, tokenizer__ggml__model="llama"), "no byte token <0x00>")


def test_damaged_headers_never_crash_the_process(tmp_path, random_model):
    seed, n_files = 20, 60
    data, values_end = random_model.read_bytes(), read_header(random_model).values_end
    rng = np.random.default_rng(seed)
    paths = []
    for number in range(n_files):
        damaged = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            end = rng.choice([900, values_end + 1500])
            damaged[rng.integers(24, end)] = rng.choice([0, 1, 255, rng.integers(256)])
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(damaged)
    code = (
        "import sys, tritgguf.runtime as rt\n"
        "from tritgguf.converter.errors import EngineError\n"
        "for path in sys.argv[1:]:\n"
        "    print(path, flush=True)\n"
        "    try:\n"
        "        with rt.open(path, n_threads=1) as session:\n"
        "            list(session.generate('hi', max_tokens=2))\n"
        "    except EngineError as error:\n"
        "        assert len(str(error).splitlines()) == 1, error\n"
    )
    child = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, timeout=120)
    last = child.stdout.splitlines()[-1]
    assert child.returncode == 0, f"seed {seed}, file {last}: {child.stderr}"
    assert child.stderr == ""


@pytest.mark.parametrize(("key", "value"), [("block_count", 2**31), ("block_count", 0), ("context_length", 2**32 - 1)])
def test_numbers_on_which_llama_cpp_would_abort(tmp_path, random_model, key, value):
    data = bytearray(random_model.read_bytes())
    start = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    data[start : start + 4] = value.to_bytes(4, "little")
    path = tmp_path / "number.gguf"
    path.write_bytes(data)
    refuse(path, f"llama.{key} is {value}")

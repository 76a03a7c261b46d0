"""Importance matrices of models: the sums that llama-imatrix finds, whole files, and what can't be computed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import bitnet_model, evaluated_models, imatrix_models
from tests.command_line import run_captured
from tests.ctrl_c import ctrl_c_in_callback
from tritgguf.converter import convert
from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.imatrix import Imatrix, read_imatrix
from tritgguf.runtime.engine.activations import Activations
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.measure import chunks
from tritgguf.runtime.measure.imatrix import compute_imatrix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imatrix")


@pytest.fixture(scope="module")
def demo(folder: Path) -> Path:
    return imatrix_models.model("demo", folder)


@pytest.fixture(scope="module")
def experts(folder: Path) -> Path:
    return imatrix_models.model("experts", folder)


def computed(name: str, model: Path, folder: Path, **options: object) -> Imatrix:
    n_ctx, n_chunks = imatrix_models.CHUNKS[name]
    text = imatrix_models.text(name, folder)
    return compute_imatrix(model, text, folder / "out.gguf", **{"n_ctx": n_ctx, "n_chunks": n_chunks, **options})


@pytest.mark.parametrize("name", ["demo", "experts"])
def test_the_sums_are_those_of_llama_imatrix(name: str, folder: Path, request: pytest.FixtureRequest) -> None:
    """Within what float32 sums lose; the same counts, chunks and names."""
    found = computed(name, request.getfixturevalue(name), folder)
    theirs = read_imatrix(imatrix_models.recorded(f"{name}.gguf", folder))
    assert found.entries.keys() == theirs.entries.keys()
    assert (found.n_chunks, found.chunk_size) == (theirs.n_chunks, theirs.chunk_size)
    assert found.datasets == theirs.datasets
    for layer, entry in theirs.entries.items():
        np.testing.assert_array_equal(found.entries[layer].counts, entry.counts, err_msg=layer)
        np.testing.assert_allclose(
            found.entries[layer].sums, entry.sums, rtol=1e-3, atol=1e-6 * entry.sums.max(), err_msg=layer
        )


def test_blocks_of_tokens_change_nothing(demo: Path, folder: Path, monkeypatch) -> None:
    """Blocks of fewer tokens, down to one of 8, with one thread or more."""
    whole = computed("demo", demo, folder)
    monkeypatch.setattr("tritgguf.runtime.measure.network.MAX_ROWS", 40)
    blocks = computed("demo", demo, folder, threads=2)
    for layer, entry in whole.entries.items():
        np.testing.assert_array_equal(blocks.entries[layer].counts, entry.counts)
        np.testing.assert_allclose(blocks.entries[layer].sums, entry.sums, rtol=1e-3, atol=1e-6 * entry.sums.max())


@pytest.mark.skipif(not compiled.PATH.exists(), reason="the kernels weren't built")
def test_a_ternary_file_with_our_cpu_kernels(folder: Path) -> None:
    """The same inputs as with llama.cpp's kernels, but for the rounding of activations to 8 bits."""
    model = convert(evaluated_models.MODEL, folder / "ternary.gguf", type="tq2_0", check=False).out
    found = []
    for kernels in ("hook", "stock"):
        out = folder / f"{kernels}.gguf"
        command = [sys.executable, "-m", "tritgguf", "imatrix", model, "--text", evaluated_models.TEXT, "-o", out]
        options = ["--ctx", "64", "--chunks", "2", "--threads", "1"]
        subprocess.run([*command, *options], check=True, env={**os.environ, "TRITGGUF_CPU_KERNELS": kernels})
        found.append(read_imatrix(out).entries)
    assert found[0].keys() == found[1].keys()
    for layer, entry in found[1].items():
        assert found[0][layer].counts == entry.counts == [128]
        np.testing.assert_allclose(found[0][layer].sums, entry.sums, rtol=0.1, atol=1e-3 * entry.sums.max())
    assert any((found[0][layer].sums != entry.sums).any() for layer, entry in found[1].items())


def test_the_command(experts: Path, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, text = tmp_path / "i.gguf", imatrix_models.text("experts", folder)
    command = ("imatrix", experts, "--text", text, "-o", out, "--ctx", "64", "--chunks", "1")
    code, printed, errors = run_captured(monkeypatch, capsys, *command)
    assert (code, errors) == (0, "")
    assert "layers' inputs on 1 chunk of 64 tokens." in printed
    n_layers = len(read_imatrix(out).entries)
    code, _, errors = run_captured(monkeypatch, capsys, *command)
    assert (code, errors) == (1, f"error: {out} exists already; add --force to replace it\n")
    code, printed, _ = run_captured(monkeypatch, capsys, *command, "--force", "--json")
    assert code == 0
    assert json.loads(printed) == {"out": str(out), "bytes": out.stat().st_size, "layers": n_layers, "chunks": 1}
    code, _, errors = run_captured(monkeypatch, capsys, "imatrix", experts, "-o", tmp_path / "j.gguf")
    assert code == 2
    assert "--text" in errors


def test_ctrl_c_leaves_no_file(demo: Path, folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out, text = tmp_path / "out.gguf", imatrix_models.text("demo", folder)
    command = ("imatrix", demo, "--text", text, "-o", out, "--ctx", "64", "--chunks", "2")
    with ctrl_c_in_callback(None) as counted:
        run_captured(monkeypatch, capsys, *command)
    out.unlink()
    with ctrl_c_in_callback(counted.n_calls - 2):
        code, _, errors = run_captured(monkeypatch, capsys, *command)
    assert code == 130
    assert f"error: interrupted; {out} was not written" in errors
    assert list(tmp_path.iterdir()) == []


# --- what can't be computed -------------------------------------------------------------------------------------------


def test_the_text_that_eval_measures_on_is_refused(demo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_bytes(chunks.DEFAULT_TEXT.read_bytes())
    with pytest.raises(EngineError, match=r"copy.txt: is the text that `tritgguf eval` measures on"):
        compute_imatrix(demo, copy, tmp_path / "out.gguf")


def test_short_texts_and_long_chunks(demo: Path, folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Who are you?")
    with pytest.raises(EngineError, match=r"short.txt: has \d+ tokens .*, one chunk needs 512"):
        compute_imatrix(demo, short, tmp_path / "out.gguf")
    with pytest.raises(EngineError, match="was trained for a context of 512 tokens, chunks have 600"):
        computed("demo", demo, folder, n_ctx=600)


def test_a_model_whose_graph_has_the_callback_already(tmp_path: Path, folder: Path) -> None:
    model = bitnet_model.write_gguf(tmp_path / "bitnet.gguf", "tq2_0")
    with pytest.raises(EngineError, match=r"runs through llama.cpp's only callback, .* needs no importance matrix"):
        computed("demo", model, folder, n_ctx=8)


def test_an_error_in_the_callback_reaches_the_caller(demo: Path, folder: Path, monkeypatch) -> None:
    def fail(*_arguments: object) -> None:
        raise EngineError("no more")

    monkeypatch.setattr(Activations, "_add", fail)
    with pytest.raises(EngineError, match="no more"):
        computed("demo", demo, folder)

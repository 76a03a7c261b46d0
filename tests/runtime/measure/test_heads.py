"""What the output layer's type costs: nothing but that layer differs, the figures are eval's, and no copy stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.command_line import run_captured
from tests.evaluated_models import MODEL
from tests.oracles import libggml
from tritgguf.converter import EngineError, UnsupportedError, convert
from tritgguf.runtime.measure import heads
from tritgguf.runtime.measure.evaluation import evaluate
from tritgguf.runtime.measure.heads import Head, Heads, measure_heads

QUICK = ("--generate", "2", "--threads", "1", "--repeat", "1")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, whose tied embeddings are F16."""
    return convert(MODEL, tmp_path_factory.mktemp("demo") / "demo.gguf", "tq2_0", check=False).out


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; one chunk of text."""
    monkeypatch.setattr(heads, "N_CHUNKS", 1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def stored(path: Path) -> dict[str, tuple[gguf.GGMLQuantizationType, np.ndarray]]:
    """Return types and bytes of a file's tensors as gguf-py reads them."""
    return {
        tensor.name: (tensor.tensor_type, np.array(tensor.data).view(np.uint8))
        for tensor in gguf.GGUFReader(path).tensors
    }


def test_nothing_but_the_output_layer_differs(demo: Path, folder: Path) -> None:
    before = stored(demo)
    kind, halves = before.pop("token_embd.weight")
    assert kind == gguf.GGMLQuantizationType.F16
    with heads._files(demo, None) as (own, name, files):
        assert (own, name, list(files)) == ("f16", "token_embd.weight", ["f16", "q8_0", "q6_k"])
        assert files["f16"] == demo
        for type_name, most in (("q8_0", 0.01), ("q6_k", 0.03)):
            after = stored(files[type_name])
            kind, data = after.pop(name)
            assert kind.name.lower() == type_name
            assert {n: (k, d.tobytes()) for n, (k, d) in after.items()} == {
                n: (k, d.tobytes()) for n, (k, d) in before.items()
            }
            values, exact = libggml.dequantize(data, kind), halves.view(np.float16).astype(np.float32)
            assert 0 < np.linalg.norm(values - exact.reshape(values.shape)) / np.linalg.norm(exact) < most
    assert not list(folder.iterdir())


def test_the_divergence_is_eval_s_of_files_that_convert_makes(demo: Path, tmp_path: Path, folder: Path) -> None:
    found = measure_heads(demo, generate=2, threads=1, repeat=2)
    others = [
        convert(MODEL, tmp_path / f"{name}.gguf", "tq2_0", embedding_type=name, check=False).out
        for name in ("q8_0", "q6_k")
    ]
    expected = evaluate(others, against=demo, n_chunks=1, threads=1).files
    assert [head.kld and head.kld[0] for head in found.heads] == [
        None,
        *(pytest.approx(file.figures.divergence.kld_mean) for file in expected),
    ]
    assert [head.file_bytes for head in found.heads] == [demo.stat().st_size, *(p.stat().st_size for p in others)]
    assert all(len(head.rates) == 2 and min(head.rates) > 0 for head in found.heads)
    assert [head.is_own for head in found.heads] == [True, False, False]
    assert not list(folder.iterdir())


def test_rows_that_a_type_does_not_fit_and_another_type_of_its_own(random_model: Path) -> None:
    with heads._files(random_model, None) as (own, name, files):
        assert (own, name, list(files)) == ("f32", "output.weight", ["f16", "q8_0", "f32"])  # 288 columns
        assert files["f32"] == random_model


def head(name: str, rate: float, kld: float | None, *, is_own: bool = False, n_bytes: int = 1_000_000) -> Head:
    return Head(name, n_bytes, [rate], None if kld is None else (kld, 0.0), is_own)


F16 = head("f16", 10.0, None, is_own=True)
LEAVE = "leave output.weight as it is: no other type is 3% faster than"


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (
            [F16, head("q8_0", 12.0, 0.0001), head("q6_k", 15.0, 0.002, n_bytes=400_000)],
            "q6_k generates 1.50 times as fast as f16, takes 0.60 MB less, costs a KL divergence of 0.00200: "
            "tritgguf convert m.gguf OUT.gguf --output-type q6_k",
        ),
        (
            [F16, head("q8_0", 12.0, 0.0001, n_bytes=700_000), head("q6_k", 15.0, 0.02)],
            "q8_0 generates 1.20 times as fast as f16, takes 0.30 MB less, costs a KL divergence of 0.00010: "
            "tritgguf convert m.gguf OUT.gguf --output-type q8_0",
        ),
        (
            [F16, head("q8_0", 10.2, 0.0001), head("q6_k", 9.0, 0.002)],
            f"{LEAVE} f16 at a KL divergence of 0.01 or less",
        ),
        (
            [head("f16", 10.0, None, n_bytes=1_500_000), head("q6_k", 8.0, 0.0, is_own=True)],
            "f16 generates 1.25 times as fast as q6_k, takes 0.50 MB more: "
            "tritgguf convert m.gguf OUT.gguf --output-type f16",
        ),
    ],
)
def test_the_advice_is_the_fastest_that_hardly_changes_predictions(found: list[Head], advice: str) -> None:
    assert Heads(Path("m.gguf"), "output.weight", 1, tuple(found), None).advice == advice
    tied = Heads(Path("m.gguf"), "token_embd.weight", 1, tuple(found), None)
    assert tied.advice == advice.replace("output.weight", "token_embd.weight").replace("--output", "--embedding")


def test_copies_that_do_not_fit_are_told_before_they_are_written(demo: Path, folder: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(folder)._replace(free=5_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    expected = (
        r"^copies of \S+ MB don't fit into .*temporary, which has 5.00 MB free; set TMPDIR to a folder with more$"
    )
    with pytest.raises(EngineError, match=expected):
        measure_heads(demo)
    assert not list(folder.iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="isn't a GGUF file: convert it first"):
        measure_heads(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("unmeasured")
def test_no_copy_stays_after_a_signal(number: int, demo: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "tritgguf", "bench", str(demo), "--heads", "--repeat", "1000", "--generate", "500"]
    with subprocess.Popen(
        command, env={**os.environ, "TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            while len(list(folder.glob("*/*.gguf"))) < 2:
                assert child.poll() is None, child.stderr and child.stderr.read()
                time.sleep(0.01)
            child.send_signal(number)
            out, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert (child.returncode, out, errors) == (130 if number == signal.SIGINT else 143, "", "")
    assert not list(folder.iterdir())


def test_the_command(demo: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tritgguf.runtime.measure.bench.busy_seconds", lambda: None)
    code, out, errors = run_captured(monkeypatch, capsys, "bench", demo, "--heads", *QUICK)
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    title = "token_embd.weight size threads tokens/s min to max to F16 KLD from F16"
    assert " ".join(lines[0].split()) == title
    assert [line.split()[0] for line in lines[1:4]] == ["f16", "q8_0", "q6_k"]
    assert lines[1].startswith("f16 (its own)")
    assert len(lines) == 5
    code, out, errors = run_captured(monkeypatch, capsys, "bench", demo, "--heads", *QUICK, "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["type"] for one in found["heads"]] == ["f16", "q8_0", "q6_k"]
    assert found["advice"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["a.gguf", "b.gguf"], "--heads measures one file in one way: give one"),
        (["a.gguf", "--threads", "1,2"], "--heads measures one file in one way: give one"),
        (["a.gguf", "--generate", "0"], "--heads measures one file in one way: give one"),
        (["a.gguf", "--plot", "a.png"], "there is no picture of --heads: leave it out"),
    ],
)
def test_what_goes_not_together(arguments: list[str], complaint: str, monkeypatch, capsys) -> None:
    code, out, errors = run_captured(monkeypatch, capsys, "bench", "--heads", *arguments)
    assert (code, out) == (2, "")
    assert complaint in " ".join(errors.replace("│", " ").split())

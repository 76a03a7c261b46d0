"""`convert --method gptq --tune STEPS`: what is kept, what is measured, stopped and resumed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import checkpoints, evaluation_oracle, gguf_weights
from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.converter import convert, plan
from tritgguf.converter.calibration import text
from tritgguf.converter.calibration.kept import STEPS, folder_for
from tritgguf.converter.calibration.text import calibration_chunks, tuning_chunks
from tritgguf.converter.conversion.pipeline import Conversion
from tritgguf.converter.core import whole_files
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.calibration import Calibration

torch = pytest.importorskip("torch", reason="needs the ptq extra")

from tritgguf.converter.calibration import tune  # noqa: E402 (it imports torch)

NAME = "llama-gqa"
TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
N_STEPS = 4
OPTIONS: dict[str, Any] = {
    "method": "gptq", "calibration": [TEXT], "calibration_chunks": 2, "threads": 1, "check": False,
}  # fmt: skip
NOTE = r"--tune: KL divergence on 2 held-out chunks, (.+) before, is (.+) after 4 steps"


@pytest.fixture(scope="module", autouse=True)
def small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        yield


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Little text, and rates that suit a model of random weights."""
    for module in (text, tune):
        patch.setattr(module, "STEP_CHUNKS", 2)
    patch.setattr(text, "MEASURED_CHUNKS", 2)
    patch.setattr(text, "N_TOKENS", 128)
    patch.setattr(tune, "RATES", {kind: rate / 10 for kind, rate in tune.RATES.items()})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build(NAME, tmp_path_factory.mktemp("model") / NAME)


@pytest.fixture(scope="module")
def fitted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(model, tmp_path_factory.mktemp("fitted") / "out.gguf", "q2_0", **OPTIONS).out


@pytest.fixture(scope="module")
def tuned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    return convert(model, tmp_path_factory.mktemp("tuned") / "out.gguf", "q2_0", tune=N_STEPS, **OPTIONS)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def texts(model: Path, steps: int = N_STEPS) -> list[np.ndarray]:
    """What gptq gets, what is tuned on, and what is measured on."""
    tokenizer = open_model(model).tokenizer
    assert tokenizer is not None
    asked = Calibration((TEXT,), n_chunks=2, tune=steps)
    return [calibration_chunks(tokenizer, asked), *tuning_chunks(tokenizer, asked)]


def divergence(model: Path, file: Path, ids: np.ndarray) -> float:
    """The file's mean KL divergence from the checkpoint at all positions but the first, by transformers."""
    config = json.loads((model / "config.json").read_text())
    both = (checkpoints.weights(NAME), gguf_weights.read(file))
    logits = (evaluation_oracle.transformers_logits(config, weights, ids)[:, 1:] for weights in both)
    base, found = (evaluation_oracle.log_softmax(one.reshape(-1, one.shape[-1])) for one in logits)
    return float((np.exp(base) * (base - found)).sum(axis=1).mean())


def noted(conversion: Conversion) -> re.Match[str]:
    (line,) = [note for note in conversion.plan.notes if note.startswith("--tune")]
    found = re.match(NOTE, line)
    assert found, line
    return found


def test_the_file_has_the_divergence_that_was_measured(model: Path, fitted: Path, tuned: Conversion) -> None:
    before, after = map(float, noted(tuned).groups())
    held_out = texts(model)[2]
    assert after < before
    assert divergence(model, fitted, held_out) == pytest.approx(before, rel=1e-3)
    assert divergence(model, tuned.out, held_out) == pytest.approx(after, rel=1e-3)


def test_layers_of_other_types_stay_as_they_are(model: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "tensor_type": ["ffn_down=q2_k"]}
    fitted = convert(model, tmp_path / "fitted.gguf", "q2_0", **options).out
    found = convert(model, tmp_path / "tuned.gguf", "q2_0", tune=N_STEPS, **options)
    before, after = map(float, noted(found).groups())
    held_out = texts(model)[2]
    assert divergence(model, fitted, held_out) == pytest.approx(before, rel=1e-3)
    assert divergence(model, found.out, held_out) == pytest.approx(after, rel=1e-3)
    name = "model.layers.1.mlp.down_proj.weight"
    assert np.array_equal(gguf_weights.read(fitted)[name], gguf_weights.read(found.out)[name])


def test_codes_stay_and_the_plan_says_what_changed(fitted: Path, tuned: Conversion) -> None:
    before, after = gguf_weights.read(fitted), gguf_weights.read(tuned.out)
    name = "model.layers.1.mlp.up_proj.weight"
    assert (before[name] != after[name]).mean() > 0.3
    assert np.array_equal(np.sign(before[name]), np.sign(after[name]))
    reasons = {tensor.spec.name: tensor.reason for tensor in tuned.plan.tensors}
    assert reasons["blk.1.ffn_up.weight"].endswith("on held-out text, scales tuned")
    assert reasons["output_norm.weight"] == "norm: F32; tuned with the scales"
    inexact = {tensor.spec.role for tensor in tuned.plan.tensors if tensor.exact is False}
    assert inexact == {"embedding", "linear", "norm", "output"}  # rotated values aren't F16
    assert (before["model.norm.weight"] != after["model.norm.weight"]).all()
    assert np.array_equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])


def test_verify_accepts_the_file_but_no_other_norm(
    model: Path, fitted: Path, tuned: Conversion, tmp_path: Path, monkeypatch, capsys
) -> None:
    code, _, errors = run_captured(monkeypatch, capsys, "verify", model, tuned.out)
    assert code == 0, errors
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tuned.out.read_bytes())
    values = gguf_weights.read(tuned.out)["model.norm.weight"].tobytes()
    damaged.write_bytes(damaged.read_bytes().replace(values, bytes(len(values))))
    code, output, _ = run_captured(monkeypatch, capsys, "verify", model, damaged)
    assert code == 1
    assert "output_norm.weight" in output


def test_the_plan_without_computing_has_the_file_s_size(model: Path, tuned: Conversion) -> None:
    options = {key: value for key, value in OPTIONS.items() if key != "check"}
    assert plan(model, "q2_0", tune=N_STEPS, **options).file_bytes == tuned.out.stat().st_size


@pytest.mark.parametrize("factor", [1e4, 1e30])
def test_what_is_worse_is_not_kept(
    factor: float, model: Path, fitted: Path, tuned: Conversion, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tune, "RATES", {kind: rate * factor for kind, rate in tune.RATES.items()})
    found = convert(model, tmp_path / "out.gguf", "q2_0", tune=N_STEPS, **OPTIONS)
    (note,) = [note for note in found.plan.notes if note.startswith("--tune")]
    assert note.endswith(": gptq's scales stay")
    before = noted(tuned)[1]
    assert f"held-out chunks, {before} before, is" in note
    for name, values in gguf_weights.read(fitted).items():
        np.testing.assert_array_equal(gguf_weights.read(found.out)[name], values)
    assert found.out.stat().st_size == tuned.out.stat().st_size


@pytest.mark.parametrize("stop_behind", [1, N_STEPS])
def test_a_stopped_run_goes_on_and_makes_the_same_bytes(
    stop_behind: int, model: Path, tuned: Conversion, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tune, "SAVED_EVERY", 0)
    target = tmp_path / "out.gguf"

    def stop(line: str) -> None:
        if line.startswith(f"tuning, step {stop_behind} of {N_STEPS}"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, target, "q2_0", told=stop, tune=N_STEPS, **OPTIONS)
    assert {path.name for path in folder_for(target, "tune").iterdir()} == {"state.json", STEPS}
    assert not target.exists()
    said: list[str] = []
    convert(model, target, "q2_0", told=said.append, tune=N_STEPS, **OPTIONS)
    assert f"goes on with the steps of tuning in {folder_for(target, 'tune')}" in said
    steps = [int(line.split()[2]) for line in said if line.startswith("tuning, step")]
    assert steps == [*range(stop_behind + 1, N_STEPS + 1)]
    assert digest(target) == digest(tuned.out)
    assert list(tmp_path.iterdir()) == [target]


def tune_until_killed(model: Path, target: Path, moment: str) -> None:
    """Tune and kill this process: behind the second step, or when its file is written but not yet in its place."""
    told: list[str] = []

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def tell(line: str) -> None:
        told.append(line)
        if moment == "behind a step" and line.startswith("tuning, step 2"):
            kill()

    def write(path: Path, data: bytes, *, force: bool) -> None:
        content = types.SimpleNamespace(header=data, file_bytes=len(data))
        with whole_files.whole_files([path], [content], force=force):
            if any(line.startswith("tuning, step 1") for line in told):
                kill()

    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(tune, "SAVED_EVERY", 0)
        if moment == "while a step is written":
            patch.setattr(tune, "write_whole", write)
        convert(model, target, "q2_0", told=tell, tune=N_STEPS, **OPTIONS)


@pytest.mark.parametrize(("moment", "made"), [("behind a step", 2), ("while a step is written", 1)])
def test_a_killed_run_goes_on(moment: str, made: int, model: Path, tuned: Conversion, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    code = (
        "import sys; from pathlib import Path; from tests.converter.calibration.test_tune import tune_until_killed\n"
        "tune_until_killed(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])"
    )
    child = subprocess.run([sys.executable, "-c", code, model, target, moment], cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not target.exists()
    said: list[str] = []
    convert(model, target, "q2_0", told=said.append, tune=N_STEPS, **OPTIONS)
    assert [int(line.split()[2]) for line in said if line.startswith("tuning, step")] == [*range(made + 1, N_STEPS + 1)]
    assert digest(target) == digest(tuned.out)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("damage", ["cut off", "other steps"])
def test_what_cannot_be_gone_on_with_is_made_anew(
    damage: str, model: Path, tuned: Conversion, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tune, "SAVED_EVERY", 0)
    target = tmp_path / "out.gguf"

    def stop(line: str) -> None:
        if line.startswith("tuning, step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(model, target, "q2_0", told=stop, tune=N_STEPS + (damage == "other steps"), **OPTIONS)
    saved = folder_for(target, "tune") / STEPS
    if damage == "cut off":
        os.truncate(saved, saved.stat().st_size // 2)
    said: list[str] = []
    convert(model, target, "q2_0", told=said.append, tune=N_STEPS, **OPTIONS)
    anew = "starts anew: other weights, options, text or version than the steps of tuning in"
    assert any(line.startswith(anew) for line in said) == (damage == "other steps")
    assert f"tuning, step 1 of {N_STEPS}" in " ".join(said)
    assert digest(target) == digest(tuned.out)


def test_no_chunk_is_used_twice(model: Path) -> None:
    found = texts(model)
    assert [chunks.shape for chunks in found] == [(2, 128), (8, 128), (2, 128)]
    everything = np.concatenate(found)
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert 8 < len(texts(model, 1000)[1]) < 100  # all that there is


def test_too_little_text_is_told_before_anything_is_fitted(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    text_file = tmp_path / "text.txt"
    text_file.write_text("Some words of text. " * 500)
    n_chunks = len(open_model(model).tokenizer.encode(text_file.read_text())) // 128  # type: ignore[union-attr]
    code, _, errors = run_captured(
        monkeypatch, capsys, "convert", model, tmp_path / "out.gguf", "--type", "q2_0", "--method", "gptq", "--tune", 3,
        "--calibration", text_file, "--calibration-chunks", n_chunks - 3,
    )  # fmt: skip
    assert code == 1
    assert errors == (
        f"error: {text_file}: has {n_chunks} chunks of 128 of this model's tokens; expected {n_chunks - 3}, and --tune "
        "2 to measure on and at least 2 others: give more text (--calibration), or ask for fewer chunks "
        f"(--calibration-chunks {n_chunks - 4})\n"
    )
    assert list(tmp_path.iterdir()) == [text_file]


def test_nothing_is_tuned_where_nothing_was_fitted(tmp_path: Path) -> None:
    exact = checkpoints.build("llama-tied", tmp_path / "model")
    found = convert(exact, tmp_path / "out.gguf", "tq2_0", tune=2, **OPTIONS)
    assert "--tune: nothing was fitted, so nothing is tuned" in found.plan.notes
    assert all(tensor.exact for tensor in found.plan.tensors if tensor.spec.role != "embedding")


def test_rates_rise_and_fall() -> None:
    shares = [tune.schedule(done, 100) for done in range(100)]
    assert shares[:8] == [number / 8 for number in range(1, 9)]
    assert shares[8:] == sorted(shares[8:], reverse=True)
    assert shares[8] == 1
    assert 0 < shares[-1] < 0.01
    assert [tune.schedule(done, 2) for done in range(2)] == [1, 1]

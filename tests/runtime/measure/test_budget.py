"""--budget: trials in memory against whole files through `eval`, budgets that hold, and what the user fixed."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests import checkpoints
from tests.checkpoint_recipes import RECIPES, Recipe
from tests.command_line import run_captured
from tests.ctrl_c import ctrl_c_in_callback
from tests.gguf_edit import rewrite
from tests.oracles import libggml
from tests.paths import ROOT
from tritgguf.converter import convert
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.planning.calibration import TYPES
from tritgguf.converter.planning.request import Request
from tritgguf.runtime.measure import budget
from tritgguf.runtime.measure.chunks import cut, read_text
from tritgguf.runtime.measure.evaluation import evaluate

N_CTX = 64
TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
FLOATS = Recipe("LlamaForCausalLM", "float", max_positions=N_CTX, layers=1)
TIED = Recipe("LlamaForCausalLM", "float", max_positions=N_CTX, layers=1, tied=True)
EXPERTS = replace(RECIPES["mixtral"], max_positions=N_CTX)
QUICK = ("--method", "four_levels", "--calibration", TEXT, "--calibration-chunks", "1", "--threads", "1", "--no-check")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build("budget", tmp_path_factory.mktemp("budget") / "model", FLOATS)


def prepared(model: Path, text: str, progress: Progress | None = None) -> budget.Choosing:
    request = Request.named("f16", "four_levels", fast_here=("q2_0",))
    return budget.prepare(model, request, text, lora=None, threads=1, progress=progress)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [(FLOATS, "blk.0.attn_v.weight"), (TIED, "token_embd.weight"), (EXPERTS, "blk.1.ffn_down_exps.weight")],
)
def test_a_trial_is_what_eval_finds_in_a_file(recipe: Recipe, name: str, tmp_path: Path) -> None:
    """A file of F16 tensors, one of which has what libggml reads of the converter's Q2_0."""
    source = checkpoints.build("trial", tmp_path / "model", recipe)
    base = convert(source, tmp_path / "f16.gguf", "f16", embedding_type="f16", check=False).out
    small = tmp_path / "small.gguf"
    convert(source, small, "f16", "four_levels", tensor_type=[f"^{re.escape(name)}$=q2_0"], check=False)
    (stored,) = (tensor for tensor in gguf.GGUFReader(small).tensors if tensor.name == name)
    rows = np.array(stored.data).view(np.uint8).reshape(-1, stored.data.shape[-1])
    values = libggml.dequantize(rows, stored.tensor_type).astype(np.float16).reshape(stored.shape[::-1].tolist())
    file = rewrite(base, tmp_path / "one.gguf", tensors={name: (values, gguf.GGMLQuantizationType.F16)})
    expected = evaluate([file], against=base, text=TEXT, n_ctx=N_CTX, n_chunks=3, threads=1).files[0].figures.divergence
    choosing = prepared(source, "16.5bpw")
    (choice,) = (one for some in choosing.choices for one in some if (one.plan.spec.name, one.type) == (name, "q2_0"))
    assert choosing.model.tensors is not None
    assert expected is not None
    with budget.opened_trials(choosing, tmp_path, None) as trials:
        chunks = cut(read_text(TEXT), trials.network.model.vocab, N_CTX, ("", "")).first(3)
        trials.begin(chunks, lambda _: None)
        found = trials.divergence(choice.plan, choosing.model.tensors[choice.plan.spec.source], 3)
        untouched = trials._measured(3)
    assert found == pytest.approx(expected.kld_mean, rel=1e-4)
    assert expected.kld_mean > 1e-3
    assert untouched < 1e-5


def test_a_budget_is_kept_and_used(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The file's size, the options that the command names, and the file that these options alone make."""
    out = tmp_path / "out.gguf"
    command = ("convert", model, out, "--budget", "3.5bpw", *QUICK, "--json")
    code, printed, err = run_captured(monkeypatch, capsys, *command)
    assert code == 0, err
    found = json.loads(printed)
    weights = sum(tensor.n_elements for tensor in gguf.GGUFReader(out).tensors)
    allowed = 3.5 * weights / 8
    assert 0.9 * allowed < out.stat().st_size <= allowed
    assert found["budget"]["bits_per_weight"] == pytest.approx(8 * out.stat().st_size / weights)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert found["notes"][0].startswith("--budget 3.5bpw: ")
    again = tmp_path / "again.gguf"
    types = [option for text in found["budget"]["tensor_types"] for option in ("--tensor-type", text)]
    code, _, err = run_captured(
        monkeypatch, capsys, "convert", model, again, "--type", "f16", "--method", "four_levels", *types, "--no-check"
    )
    assert code == 0, err
    assert again.read_bytes() == out.read_bytes()


def test_what_the_user_fixed_stays_and_counts(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out.gguf"
    fixed = ("--tensor-type", r"blk\.0\.ffn_(gate|up|down)=q8_0", "--embedding-type", "f16", "--output-type", "q4_0")
    code, _, err = run_captured(monkeypatch, capsys, "convert", model, out, "--budget", "8bpw", *QUICK, *fixed)
    assert code == 0, err
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert {types[f"blk.0.ffn_{name}.weight"] for name in ("gate", "up", "down")} == {"Q8_0"}
    assert (types["token_embd.weight"], types["output.weight"]) == ("F16", "Q4_0")
    assert out.stat().st_size <= sum(tensor.n_elements for tensor in gguf.GGUFReader(out).tensors)


def test_each_matrix_is_reported_once_it_is_read(model: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    choosing = prepared(model, "16.5bpw", lambda *report: reports.append(report))
    done = [report[1] for report in reports]
    assert len(done) == len(choosing.choices)
    assert done == sorted(set(done))
    assert {(stage, total) for stage, _, total in reports} == {("reading", done[-1])}


def test_more_bytes_never_predict_a_worse_model(model: Path, tmp_path: Path) -> None:
    choosing = prepared(model, "16.5bpw")
    with budget.opened_trials(choosing, tmp_path, None) as trials:
        measured = budget.measure(choosing, trials, [TEXT], n_chunks=1)
    sizes = [choosing.least.file_bytes * times for times in (1, 2, 4)]
    predicted = [budget.solve(replace(choosing, n_bytes=size), measured).predicted for size in sizes]
    assert predicted == sorted(predicted, reverse=True)
    assert predicted[0] > 100 * predicted[-1]


def test_a_gguf_file_s_own_types_are_choices(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Within its own size a Q8_0 file stays as it is, and nothing needs to be tried."""
    source, out = tmp_path / "q8_0.gguf", tmp_path / "out.gguf"
    convert(model, source, "q8_0", embedding_type="q8_0", output_type="q8_0", check=False)
    n_bytes = source.stat().st_size + 64
    command = ("convert", source, out, "--budget", n_bytes, *QUICK)
    code, printed, err = run_captured(monkeypatch, capsys, *command, "--json")
    assert code == 0, err
    assert json.loads(printed)["budget"]["predicted_kld"] == 0
    before, after = (
        {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in gguf.GGUFReader(path).tensors}
        for path in (source, out)
    )
    assert after == before


def test_a_dry_run_measures_too(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    command = ("convert", model, "--dry-run", "--budget", "5bpw", "--json", *QUICK)
    code, printed, err = run_captured(monkeypatch, capsys, *command)
    assert code == 0, err
    found = json.loads(printed)
    assert found["file_bytes"] <= found["budget"]["budget_bytes"]
    assert found["budget"]["predicted_kld"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", [1, 300])
def test_ctrl_c_leaves_nothing(moment: int, model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """While the untouched model is evaluated, and during a trial."""
    out = tmp_path / "out.gguf"
    with ctrl_c_in_callback(moment) as calls:
        code, printed, err = run_captured(monkeypatch, capsys, "convert", model, out, "--budget", "5bpw", *QUICK)
    assert code == 128 + signal.SIGINT, err
    assert calls.n_calls >= moment
    assert f"error: interrupted; {out} was not written" in err
    assert not printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--budget", "1bpw"),
            r"--budget 1bpw: is 0.09 MB, but the file takes at least \d+ bytes \(0.\d+ MB, 1.\d+bpw\)",
        ),
        (
            ("--budget", "small"),
            "--budget small: expected bits per weight of the whole file, such as 2.3bpw, or a size",
        ),
        (("--budget", "3bpw", "--type", "q4_0"), "--type q4_0"),
        (("--budget", "3bpw", "--method", "gptq", "--untie"), "--untie spends them on a copy of the embeddings"),
        (("--budget", "3bpw", "--method", "gptq", "--gptq-without", "x"), "--gptq-without x: unknown step"),
        (("--budget", "3bpw", "--max-bits", "4"), "--max-bits has no meaning with --budget 3bpw"),
        (("--budget", "3bpw", "--smallest"), "--smallest has no meaning with --budget 3bpw"),
        (("--budget", "3bpw", "--calibration-chunks", "0"), "--calibration-chunks 0: expected at least 1"),
        (("--budget", "3bpw", "--calibration-chunks", "100000"), "expected 100000: give more text"),
        (("--budget", "3bpw", "--gptq-without", "refit"), "belong to --method gptq"),
    ],
)
def test_what_makes_no_sense_is_one_line(options, message, model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    code, printed, err = run_captured(monkeypatch, capsys, "convert", model, tmp_path / "out.gguf", *options)
    assert (code, printed) == (1, "")
    assert re.search(message, err), err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_least_size_that_the_message_names_is_possible(model: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        prepared(model, "1000")
    named = re.search(r"at least (\d+) bytes \(.* MB, ([\d.]+bpw)\)", str(refused.value))
    assert named is not None
    assert prepared(model, named[2]).least.file_bytes == prepared(model, named[1]).n_bytes == int(named[1])
    with pytest.raises(UnsupportedError):
        prepared(model, str(int(named[1]) - 1))


def test_the_text_of_the_verdict_is_refused(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(read_text(None) + "\n")
    choosing = prepared(model, "5bpw")
    with budget.opened_trials(choosing, tmp_path, None) as trials, pytest.raises(SourceError, match="too good"):
        budget.measure(choosing, trials, [text])


def test_gptq_leaves_less_the_more_codes_it_has() -> None:
    shares = budget.LEFT_BY_GPTQ
    assert set(shares) == set(TYPES)
    assert 1 > shares["tq1_0"] == shares["tq2_0"] > shares["q2_0"] > shares["q2_k"] > 0


def test_costs_follow_squared_errors() -> None:
    """Two trials of clear errors; between them a power law, beyond them in proportion; nothing for what is exact."""
    assert budget.to_try([0.2, 0.1, 0.01, 0.02, 1e-4, 0.0]) == [0, 3]
    assert budget.to_try([1e-4, 1e-5]) == [0]
    assert budget.to_try([0.0]) == []
    assert budget.to_try([0.2, 0.1, 1e-4, 0.0], every=True) == [0, 1, 2]
    measured = {0.1: 0.8, 0.001: 0.002}
    assert budget.loss(0.1, measured) == 0.8
    assert budget.loss(0.01, measured) == pytest.approx(0.04)
    assert budget.loss(0.2, measured) == pytest.approx(1.6)
    assert budget.loss(0.0001, measured) == pytest.approx(0.0002)
    assert budget.loss(0.0, measured) == 0.0

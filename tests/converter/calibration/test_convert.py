"""`convert --method gptq` from a folder to a file, stopped and resumed, and against rounding to nearest."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from tests import checkpoints, evaluation_oracle, gguf_weights
from tests.checkpoint_recipes import RECIPES
from tests.command_line import run_captured
from tests.oracles import libggml
from tests.paths import ROOT
from tests.runtime.hub.hub_server import server
from tritgguf.converter import convert, plan
from tritgguf.converter.calibration.kept import folder_for
from tritgguf.converter.calibration.text import calibration_chunks
from tritgguf.converter.errors import TensorError, UnsupportedError
from tritgguf.converter.model.open import open_model
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.verification.verification import verify

torch = pytest.importorskip("torch", reason="needs the ptq extra")

NAME = "llama-gqa"
TEXT = ROOT / "vendor" / "demo_training" / "own_conversations.txt"
OPTIONS: dict[str, Any] = {"method": "gptq", "calibration": [TEXT], "calibration_chunks": 6, "threads": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.build(NAME, tmp_path_factory.mktemp("model") / NAME)


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(model, tmp_path_factory.mktemp("out") / "out.gguf", "q2_0", check=False, **OPTIONS).out


def interrupt(_line: str) -> None:
    raise KeyboardInterrupt


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def divergence_of(
    model: Path, weights: list[dict[str, gguf_weights.Floats]], ids: npt.NDArray[np.int64]
) -> list[float]:
    """Return the KL divergences from the model of such weights, by their names, on token ids, (1, n_tokens)."""
    config = json.loads((model / "config.json").read_text())
    base = evaluation_oracle.transformers_logits(config, checkpoints.weights(NAME), ids)
    logits = [evaluation_oracle.transformers_logits(config, found, ids) for found in weights]
    return [evaluation_oracle.figures(ids, found, base, whole=True)["kld_mean"] for found in logits]


def test_the_file_predicts_much_better_than_one_rounded_to_nearest(model: Path, out: Path, tmp_path: Path) -> None:
    rounded = convert(model, tmp_path / "rounded.gguf", "q2_0", check=False).out
    files = [rounded, out]
    for without in ("fourth-code,rotation", "rotation"):  # such random weights are as good in any basis
        file = tmp_path / f"{without}.gguf"
        files.append(convert(model, file, "q2_0", check=False, gptq_without=[without], **OPTIONS).out)
    nearest, *fitted = divergence_of(model, [*map(gguf_weights.read, files)], unseen_chunk(model))
    assert max(fitted) < 0.5 * nearest
    linear = [kind for name, kind in gguf_weights.types(out).items() if name.startswith("blk.") and "norm" not in name]
    assert set(linear) == {"q2_0"}
    values = gguf_weights.read(out)["model.layers.0.mlp.down_proj.weight"].reshape(-1, 64)
    assert max(len(np.unique(group)) for group in values) == 4


def test_a_model_with_tied_embeddings_is_rotated_only_if_asked(tmp_path: Path, monkeypatch, capsys) -> None:
    tied = checkpoints.build("llama-llama3-tied", tmp_path / "tied")
    files, notes = {}, {}
    for untie in (False, True):
        out = tmp_path / f"{untie}.gguf"
        made = convert(tied, out, "q2_0", check=False, untie=untie, **OPTIONS)
        files[untie], notes[untie] = gguf_weights.types(out), "\n".join(made.plan.notes)
        assert plan(tied, "q2_0", untie=untie, **OPTIONS).file_bytes == out.stat().st_size
        code, _, errors = run_captured(monkeypatch, capsys, "verify", tied, out)
        assert code == 0, errors
    assert files[True].keys() - files[False].keys() == {"output.weight"}
    assert "--untie gives it one of its own" in notes[False]
    assert "--untie" not in notes[True]


@pytest.mark.parametrize(
    ("name", "why"), [("llama-gqa", "has an output layer of its own"), ("llama-tied", "can't be rotated")]
)
def test_untie_where_it_would_do_nothing(name: str, why: str, tmp_path: Path) -> None:
    folder = checkpoints.build(name, tmp_path / name)
    message = f"{folder.name}: --untie has no effect, since the model {why}: leave it out"
    with pytest.raises(UnsupportedError, match=message):
        plan(folder, "q2_0", untie=True, **OPTIONS)
    with pytest.raises(UnsupportedError, match=message):
        convert(folder, tmp_path / "out.gguf", "q2_0", check=False, untie=True, **OPTIONS)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_model_of_which_nothing_is_fitted_is_not_rotated(tmp_path: Path) -> None:
    """No row of it is a multiple of 256 columns."""
    recipe = replace(RECIPES[NAME], hidden=192, heads=3, kv_heads=1, ffn=640)
    narrow = checkpoints.build("narrow", tmp_path / "narrow", recipe)
    options: dict[str, Any] = {"fallback": "f16", **OPTIONS}
    convert(narrow, tmp_path / "out.gguf", "tq2_0", check=False, **options)
    plain = convert(narrow, tmp_path / "plain.gguf", "tq2_0", check=False, fallback="f16")
    assert digest(tmp_path / "out.gguf") == digest(plain.out)
    assert plan(narrow, "tq2_0", **options).file_bytes == plain.plan.file_bytes


def test_q2_k_is_much_better_than_ggml_s_own_and_better_than_q2_0(model: Path, out: Path, tmp_path: Path) -> None:
    """q2_k for all linear layers, and for some beside q2_0; the mixed file is stopped once on its way."""
    whole = convert(model, tmp_path / "q2_k.gguf", "q2_k", check=False, **OPTIONS).out
    mixed, choice = tmp_path / "mixed.gguf", {**OPTIONS, "tensor_type": ["ffn_down=q2_k"]}
    with pytest.raises(KeyboardInterrupt):
        convert(model, mixed, "q2_0", check=False, told=interrupt, **choice)
    found = convert(model, mixed, "q2_0", check=False, **choice).plan
    assert digest(convert(model, tmp_path / "again.gguf", "q2_0", check=False, **choice).out) == digest(mixed)
    stock = {name: as_ggml_rounds(name, values) for name, values in checkpoints.weights(NAME).items()}
    weights = [stock, *map(gguf_weights.read, (out, mixed, whole))]
    ggml, q2_0, some, all_layers = divergence_of(model, weights, unseen_chunk(model))
    assert all_layers < some < q2_0
    assert all_layers < 0.2 * ggml
    linear = [tensor for tensor in found.tensors if tensor.spec.role == "linear"]
    assert {(tensor.codec.name, "ffn_down" in tensor.spec.name) for tensor in linear} == {
        ("q2_0", False),
        ("q2_k", True),
    }
    assert {tensor.exact for tensor in linear} == {False}
    (note,) = (note for note in found.notes if "chosen by gptq" in note)
    assert note.startswith(
        "12 linear layers have four codes (2 bits, not ternary) and 2 linear layers have four codes, scales and minima "
        "(2 bits, not ternary) chosen by gptq, which loses quality; at the last block"
    )
    assert verify(model, mixed).problems == verify(model, whole).problems == []


def unseen_chunk(model: Path) -> npt.NDArray[np.int64]:
    """Token ids (1, 512) of the calibration text, of which nothing was fitted to these."""
    tokenizer, n_chunks = open_model(model).tokenizer, OPTIONS["calibration_chunks"] + 1
    assert tokenizer is not None
    return calibration_chunks(tokenizer, Calibration((TEXT,), n_chunks))[-1:]


def test_strict_ternary_types_lose_much_less_than_rounding(model: Path, tmp_path: Path) -> None:
    """TQ1_0, whose rows of 256 and 512 columns are one and two groups; TQ2_0 has the same codes and scales."""
    rounded = convert(model, tmp_path / "rounded.gguf", "tq1_0", check=False).out
    found = {name: convert(model, tmp_path / name, name, check=False, **OPTIONS).out for name in ("tq1_0", "tq2_0")}
    one, two, nearest = map(gguf_weights.read, (*found.values(), rounded))
    assert all(np.array_equal(one[name], values) for name, values in two.items())
    linear = [values.reshape(-1, 256) for name, values in one.items() if checkpoints.is_linear(name)]
    assert max(len(np.unique(group)) for values in linear for group in values) == 3
    fitted, unfitted = divergence_of(model, [one, nearest], unseen_chunk(model))
    assert fitted < 0.5 * unfitted
    assert verify(model, found["tq1_0"]).problems == []


def as_ggml_rounds(name: str, values: gguf_weights.Floats) -> gguf_weights.Floats:
    """A linear layer's weights after ggml's own quantizer for Q2_K, others unchanged."""
    q2_k = gguf.GGMLQuantizationType.Q2_K
    return libggml.dequantize(libggml.quantize(values, q2_k), q2_k) if checkpoints.is_linear(name) else values


def test_q2_k_steps_can_be_left_out_and_help(model: Path, tmp_path: Path) -> None:
    errors = []
    for number, without in enumerate(([], ["refit,descent,feedback"])):
        found = convert(
            model, tmp_path / f"{number}.gguf", "f16", check=False, tensor_type=["ffn_down=q2_k"],
            gptq_without=without, **OPTIONS,
        )  # fmt: skip
        (note,) = (note for note in found.plan.notes if "chosen by gptq" in note)
        errors.append(float(note.split("block error ")[1].split()[0]))
    assert errors[0] < 0.9 * errors[1]


def test_types_of_single_layers_are_told_before_anything_is_computed(tmp_path: Path) -> None:
    model = checkpoints.build("llama-gqa", tmp_path / "model", replace(RECIPES[NAME], ffn=320))
    down = "model.layers.0.mlp.down_proj.weight: rows of 320 values aren't a multiple of 256, which q2_k needs"
    with pytest.raises(TensorError, match=f"^{down}; add --fallback f16 to store such tensors as F16$"):
        convert(model, tmp_path / "out.gguf", "q2_k", check=False, **OPTIONS)
    with pytest.raises(TensorError, match=f"^{down}; choose another type, such as --tensor-type ffn_down=f16$"):
        convert(model, tmp_path / "out.gguf", "q2_0", check=False, tensor_type=["ffn_down=q2_k"], **OPTIONS)
    assert list(tmp_path.iterdir()) == [model]
    others = plan(model, "q2_0", tensor_type=["ffn_down=f16", "attn_v=q4_0"], **OPTIONS)  # Q4_0 takes any floats
    assert {tensor.codec.name for tensor in others.tensors if "attn_v" in tensor.spec.name} == {"q4_0"}
    assert {tensor.encoder.rounds for tensor in others.tensors if "attn_v" in tensor.spec.name} == {False}
    with_fallback = plan(model, "q2_k", fallback="f16", **OPTIONS)
    assert {tensor.codec.name for tensor in with_fallback.tensors if "ffn_down" in tensor.spec.name} == {"f16"}


def test_the_plan_says_that_it_is_not_exact(model: Path, out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    found = convert(model, tmp_path / "again.gguf", "q2_0", check=False, **OPTIONS).plan
    assert digest(tmp_path / "again.gguf") == digest(out)
    linear = [tensor for tensor in found.tensors if tensor.spec.role == "linear"]
    assert {tensor.exact for tensor in linear} == {False}
    assert all(
        tensor.reason.startswith("four codes (2 bits, not ternary) chosen by gptq: block error") for tensor in linear
    )
    assert any("chosen by gptq, which loses quality; at the last block" in note for note in found.notes)
    before = plan(model, "q2_0", **OPTIONS)  # without computing anything
    assert before.file_bytes == out.stat().st_size
    assert {tensor.exact for tensor in before.tensors if tensor.spec.role == "linear"} == {False}
    code, _, errors = run_captured(monkeypatch, capsys, "verify", model, out)
    assert code == 0, errors


@pytest.mark.parametrize("stop_behind", [1, 2])
def test_a_stopped_run_goes_on_and_makes_the_same_bytes(
    stop_behind: int, model: Path, out: Path, tmp_path: Path
) -> None:
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if len(told) == stop_behind:
            raise KeyboardInterrupt

    target = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        convert(model, target, "q2_0", check=False, told=stop, **OPTIONS)
    kept = folder_for(target)
    blocks = {path: path.stat().st_mtime_ns for path in kept.glob("block-*")}
    assert len(blocks) == stop_behind
    assert [path for path in tmp_path.iterdir() if path != kept] == []
    said: list[str] = []

    def told_again(line: str) -> None:
        said.append(line)
        assert blocks.items() <= {path: path.stat().st_mtime_ns for path in kept.glob("block-*")}.items()

    convert(model, target, "q2_0", check=False, told=told_again, **OPTIONS)
    assert said[0] == f"goes on with the blocks in {kept}"
    assert said[1 : 1 + stop_behind] == told
    assert digest(target) == digest(out)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("other", ["seed", "steps", "weights"])
def test_what_was_made_for_anything_else_is_made_anew(other: str, model: Path, out: Path, tmp_path: Path) -> None:
    target, source, options = tmp_path / "out.gguf", model, OPTIONS
    if other == "weights":
        source = checkpoints.build(NAME, tmp_path / "model", replace(RECIPES[NAME], dtype="F16"))
    else:
        options = {**OPTIONS, **({"seed": 1} if other == "seed" else {"gptq_without": ["descent"]})}
    with pytest.raises(KeyboardInterrupt):
        convert(source, target, "q2_0", check=False, told=interrupt, **options)
    said: list[str] = []
    convert(model, target, "q2_0", check=False, told=said.append, **OPTIONS)
    assert said[0] == f"starts anew: other weights, options, text or version than the blocks in {folder_for(target)}"
    assert digest(target) == digest(out)


def test_a_damaged_block_is_made_again(model: Path, out: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        convert(model, target, "q2_0", check=False, told=interrupt, **OPTIONS)
    (block,) = folder_for(target).glob("block-*")
    os.truncate(block, block.stat().st_size - 1)
    convert(model, target, "q2_0", check=False, **OPTIONS)
    assert digest(target) == digest(out)


def convert_until_killed(model: Path, target: Path) -> None:
    """Convert and kill this process behind the first block."""

    def tell(line: str) -> None:
        if line.startswith("block 1 of 2: block error"):
            os.kill(os.getpid(), signal.SIGKILL)

    convert(model, target, "q2_0", check=False, told=tell, **OPTIONS)


def test_a_killed_run_goes_on(model: Path, out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    target = tmp_path / "out.gguf"
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.converter.calibration.test_convert import convert_until_killed\n"
        "convert_until_killed(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    child = subprocess.run([sys.executable, "-c", code, model, target], cwd=ROOT, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not target.exists()
    options = ["--type", "q2_0", "--method", "gptq", "--calibration", str(TEXT), "--calibration-chunks", "6"]
    command = ["convert", str(model), str(target), *options, "--threads", "1", "--no-check"]
    code, _, errors = run_captured(monkeypatch, capsys, *command)
    assert code == 0, errors
    assert f"note: goes on with the blocks in {folder_for(target)}\n" in errors
    assert digest(target) == digest(out)
    assert list(tmp_path.iterdir()) == [target]


def test_a_dataset_on_the_hub_is_the_same_text(model: Path, out: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    server().add("datasets/tests/own", {"README.md": b"# A card", "data/train.txt": TEXT.read_bytes()})
    target = tmp_path / "out.gguf"
    code, _, errors = run_captured(
        monkeypatch, capsys, "convert", model, target, "--type", "q2_0", "--method", "gptq", "--calibration",
        "hf.co/datasets/tests/own", "--calibration-chunks", 6, "--threads", 1, "--no-check", "--no-verdict",
    )  # fmt: skip
    assert code == 0, errors
    assert errors.startswith("note: datasets/tests/own is data/train.txt\nnote: block 1 of 2: block error")
    assert digest(target) == digest(out)


def test_a_file_of_the_user_in_the_folder_is_not_deleted(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    target = tmp_path / "out.gguf"
    folder_for(target).mkdir()
    (folder_for(target) / "mine.txt").write_text("mine")
    code, _, errors = run_captured(
        monkeypatch, capsys, "convert", model, target, "--type", "q2_0", "--method", "gptq", "--calibration", TEXT,
        "--calibration-chunks", 2,
    )  # fmt: skip
    assert code == 1
    assert errors == f"error: {folder_for(target)} holds mine.txt, which tritgguf didn't write: move it elsewhere\n"
    assert (folder_for(target) / "mine.txt").read_text() == "mine"


def test_a_class_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    model = checkpoints.build("granite", tmp_path / "granite")
    with pytest.raises(UnsupportedError, match=r"^GraniteForCausalLM: --method gptq takes decoders"):
        convert(model, tmp_path / "out.gguf", "q2_0", check=False, **OPTIONS)
    assert not (tmp_path / "out.gguf").exists()


def test_layers_that_are_ternary_already_stay_exact(tmp_path: Path) -> None:
    assert RECIPES["llama-tied"].weights.startswith("ternary")
    model = checkpoints.build("llama-tied", tmp_path / "model")
    found = convert(model, tmp_path / "out.gguf", "tq2_0", check=False, **OPTIONS).plan
    assert all(tensor.exact for tensor in found.tensors if tensor.spec.role == "linear")

"""The folders that quantize writes: sizes as predicted, whole or not at all, resumable, honest; and their logits."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests import checkpoints, numpy_decoder, packed_checkpoints, paths
from tests.checkpoint_recipes import RECIPES, config
from tests.command_line import run_captured
from tritgguf.converter import (
    OutputError,
    TensorError,
    UnsupportedError,
    convert,
    form_named,
    plan_quantization,
    quantize,
)
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.export.output_folder import STATE

FORMS = [
    ("absmean-g64", None), ("absmean-g64", True), ("bitnet", None), ("uniform-d1", None), ("uniform-d1", False),
    ("uniform-d2", False), ("uniform-d3", None), ("uniform-d3", False),
]  # fmt: skip
QWEN_14B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": False,
    "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
GOLDENS = paths.GOLDEN
GOLDEN_ROUNDING = 2e-4  # the goldens are int16 and were computed in float32
ACTIVATIONS_ROUNDED = 2e-3  # where float32 and float64 fall on two sides of a half


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize(("scheme", "dequantized"), FORMS)
def test_sizes_are_as_planned_with_weights_and_without(scheme: str, dequantized, model, tmp_path: Path) -> None:
    form = form_named(scheme, dequantized=dequantized)
    planned = plan_quantization(model("qwen2-tied"), form)
    result = quantize(model("qwen2-tied"), tmp_path / "out", form)
    assert weight_bytes(result.out) == planned.weight_bytes == result.plan.weight_bytes
    (tmp_path / "config.json").write_text((model("qwen2-tied") / "config.json").read_text())
    assert plan_quantization(tmp_path, form).weight_bytes == planned.weight_bytes
    open_checkpoint(result.out, linear=())


def test_the_14b_seed_has_the_size_of_its_card(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_14B))
    plan = plan_quantization(tmp_path, form_named("absmean-g64"))
    assert f"{plan.weight_bytes / 1e9:.2f}" == "4.62"
    assert all(shard.file_bytes <= 5_000_000_000 for shard in plan.shards)
    floats = plan_quantization(tmp_path, form_named("uniform-d1"))
    assert len(floats.shards) == math.ceil(floats.weight_bytes / 4.99e9) == 6
    assert all(shard.file_bytes <= 5_000_000_000 for shard in floats.shards)


@pytest.mark.parametrize(("scheme", "information"), [("uniform-d1", 1.88), ("uniform-d2", 3.47), ("uniform-d3", 5.05)])
def test_packed_trits_take_their_information_header_included(scheme: str, information: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN_14B | {"hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}))  # fmt: skip
    plan = plan_quantization(tmp_path, form_named(scheme, dequantized=False))
    coded = [tensor for tensor in plan.tensors if tensor.scheme]
    plain_bytes = sum(tensor.n_bytes for tensor in plan.tensors if not tensor.scheme)
    bits = 8 * (plan.weight_bytes - plain_bytes) / sum(tensor.n_weights for tensor in coded)
    exact = int(scheme[-1]) * math.log2(3) + math.log2(27) / 16
    assert exact == pytest.approx(information, abs=0.005)
    assert exact < bits < 1.01 * exact


def test_shards_with_an_index(model, tmp_path: Path) -> None:
    form = form_named("absmean-g64", shard_bytes=100_000)
    out = quantize(model("llama-gqa"), tmp_path / "out", form).out
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = read_tensors(out)
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.n_bytes for tensor in tensors.values())
    whole = read_tensors(quantize(model("llama-gqa"), tmp_path / "whole", "absmean-g64").out)
    assert {name: tensor.data.tobytes() for name, tensor in whole.items()} == {
        name: tensor.data.tobytes() for name, tensor in tensors.items()
    }
    for name in tensors:
        if name.endswith(".scales"):  # beside what they belong to
            assert index["weight_map"][name] == index["weight_map"][name.removesuffix(".scales")]


def test_the_threads_make_no_difference(model, tmp_path: Path) -> None:
    one, four = (quantize(model("llama-gqa"), tmp_path / f"{n}", "uniform-d2", threads=n).out for n in (1, 4))
    assert (one / "model.safetensors").read_bytes() == (four / "model.safetensors").read_bytes()


@pytest.mark.parametrize("scheme", ["bitnet", "uniform-d1", "uniform-d2", "uniform-d3"])
def test_transformers_computes_with_the_weights_that_are_read(scheme: str, model, tmp_path: Path) -> None:
    """golden/exports.npz: the logits of these folders as AutoModelForCausalLM.from_pretrained loads them."""
    with np.load(GOLDENS / "exports.npz") as golden:
        assert checkpoints.digest(model("llama-gqa")) == str(golden["checkpoint_sha256"]), "run `make golden` again"
        expected = golden[f"{scheme}_int16"] * golden[f"{scheme}_step"]
    out = quantize(model("llama-gqa"), tmp_path / "out", scheme).out
    tensors = open_checkpoint(out, linear=()).tensors
    weights = {name: tensor.read(slice(None)).reshape(tensor.shape) for name, tensor in tensors.items()}
    keys = config(RECIPES["llama-gqa"]) | {"rounded_activations": scheme == "bitnet"}
    keys.setdefault("rope_theta", keys.get("rope_parameters", {}).get("rope_theta"))
    found = numpy_decoder.logits(weights, keys, checkpoints.token_ids("llama-gqa"))
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (ACTIVATIONS_ROUNDED if scheme == "bitnet" else GOLDEN_ROUNDING)


@pytest.mark.parametrize("name", ["2b4t", "falcon3", "14b-seed", "14b-padded", "llama-rows", "2b4t-online"])
def test_any_packed_folder_becomes_plain(name: str, model, tmp_path: Path) -> None:
    out = quantize(model(name), tmp_path / "out", form_named(None, dtype="f32")).out
    checkpoint = open_checkpoint(out, linear=())
    assert checkpoint.packing == "plain floats"
    expected = packed_checkpoints.weights(name)
    assert set(checkpoint.tensors) == set(expected)
    for key, tensor in checkpoint.tensors.items():
        np.testing.assert_allclose(tensor.read(slice(None)).reshape(tensor.shape), expected[key], rtol=3e-7)
    keys = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in keys
    assert keys["dtype"] == "float32"


@pytest.mark.parametrize("name", ["gemma3", "qwen35", "qwen3next"])
def test_what_graphs_want_in_another_form_is_written_as_checkpoints_have_it(name: str, model, tmp_path: Path) -> None:
    """Gemma's norms are one larger in GGUF; of Qwen3.5's and Qwen3-Next's linear attention much more is different."""
    out = quantize(model(name), tmp_path / "out", form_named("absmean-g64")).out
    stored, written = read_tensors(model(name)), read_tensors(out)
    plain = [key for key in stored if not checkpoints.is_linear(key) and "embed" not in key and "lm_head" not in key]
    assert len(plain) > 30 if name == "gemma3" else len(plain) > 25
    for key in plain:
        assert written[key].shape == stored[key].shape
        np.testing.assert_array_equal(written[key].read(slice(None)), stored[key].read(slice(None)), err_msg=key)
    rounded = convert(out, tmp_path / "out.gguf", "q2_0", check=False, method="absmean").plan
    assert not [tensor for tensor in rounded.tensors if tensor.encoder.rounds]


def test_packed_and_dequantized_hold_the_same(model, tmp_path: Path) -> None:
    packed, plain = (
        quantize(model("llama-gqa"), tmp_path / f"{floats}", form_named("uniform-d2", dequantized=floats)).out
        for floats in (False, True)
    )
    written = quantize(packed, tmp_path / "written", form_named(None, dtype="f16")).out
    expected = read_tensors(plain)
    for name, tensor in read_tensors(written).items():
        assert tensor.dtype == "F16"
        np.testing.assert_array_equal(tensor.data, expected[name].data, err_msg=name)


def test_config_card_and_tokenizer(model, tmp_path: Path) -> None:
    source = model("llama-gqa")
    result = quantize(source, tmp_path / "out", form_named("uniform-d2", dequantized=False))
    keys = json.loads((result.out / "config.json").read_text())
    assert keys["quantization_config"]["quant_method"] == "uniform_balanced_ternary"
    assert keys["hidden_size"] == json.loads((source / "config.json").read_text())["hidden_size"]
    for path in source.glob("tokenizer*"):
        assert (result.out / path.name).read_bytes() == path.read_bytes()
    card = (result.out / "README.md").read_text()
    rows = dict(line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| "))
    assert rows["scheme"] == "uniform-d2"
    assert rows["bits per weight that the scheme needs, linear layers"] == "3.47"
    assert f"{weight_bytes(result.out):,}" in rows["size"]
    weights, tensors = checkpoints.weights("llama-gqa"), open_checkpoint(result.out, linear=()).tensors
    for fact in result.facts:
        values, want = tensors[fact.name].read(slice(None)).reshape(-1), weights[fact.name].reshape(-1)
        found = float(((values.astype(np.float64) - want) ** 2).sum() / (want.astype(np.float64) ** 2).sum())
        assert fact.error == pytest.approx(found, rel=1e-4, abs=1e-12), fact.name
    worst = max((fact for fact in result.facts if fact.coded), key=lambda fact: fact.error)
    assert f"at most {worst.error:.3g} ({worst.name})" in rows["relative squared error, quantized tensors"]


class CutShortError(Exception):
    """Stands for a power cut in the middle."""


def cut_short(after: int):
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "writing" and done > after:
            raise CutShortError

    return progress


def test_an_interrupted_run_leaves_nothing(model, tmp_path: Path) -> None:
    with pytest.raises(CutShortError):
        quantize(model("llama-gqa"), tmp_path / "out", "absmean-g64", progress=cut_short(100_000))
    assert list(tmp_path.iterdir()) == []


def test_resume_goes_on_file_by_file(model, tmp_path: Path) -> None:
    source, out, part = model("llama-gqa"), tmp_path / "out", tmp_path / "out.part"
    form = form_named("absmean-g64", shard_bytes=100_000)
    with pytest.raises(CutShortError):
        quantize(source, out, form, resume=True, progress=cut_short(300_000))
    assert not out.exists()
    done = sorted(part.glob("*.safetensors"))
    assert 1 <= len(done) < len(plan_quantization(source, form).shards)
    assert not list(part.glob("*.part"))
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in done}
    with pytest.raises(OutputError, match="--resume"):
        quantize(source, out, form)
    with pytest.raises(OutputError, match="other options"):
        quantize(source, out, form_named("bitnet", shard_bytes=100_000), resume=True)
    result = quantize(source, out, form, resume=True)
    assert not part.exists()
    for path in out.glob("*.safetensors"):
        found = (path.stat().st_mtime_ns, path.stat().st_ino)
        assert (found == before.get(path.name)) == (path.name in before)
    whole = quantize(source, tmp_path / "whole", form)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        path.name: path.read_bytes() for path in whole.out.iterdir()
    }
    assert result.facts == whole.facts
    assert not list(out.glob(f"*{STATE}"))


def test_what_stands_there_is_kept(model, tmp_path: Path) -> None:
    source = checkpoints.build("llama-gqa", tmp_path / "model")
    for target, message in ((source, "the model itself"), (tmp_path, "the model itself")):
        with pytest.raises(OutputError, match=message):
            quantize(source, target, "bitnet", force=True)
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_text("a")
    with pytest.raises(OutputError, match="isn't replaced"):
        quantize(source, photos, "bitnet", force=True)
    with pytest.raises(OutputError, match="--force"):
        quantize(source, photos, "bitnet")
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]
    out = quantize(source, tmp_path / "out", "bitnet").out
    (out / "note.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"also holds note.txt, which --force would delete"):
        quantize(source, out, "absmean-g64", force=True)
    (out / "note.txt").rename(tmp_path / "note.txt")
    quantize(source, out, "absmean-g64", force=True)
    assert "| absmean-g64 |" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "note.txt", "out", "photos"]


@pytest.mark.parametrize(
    ("recipe", "scheme", "error", "message"),
    [
        ("llama-gqa", None, UnsupportedError, "nothing to dequantize"),
        ("1bitllm", None, UnsupportedError, "rounds its weights"),
        ("1bitllm", "uniform-d1", UnsupportedError, "rounds its weights"),
        ("bitcpm", "bitnet", TensorError, "which bitnet can't hold"),
        ("llama-gqa", "ternary", UnsupportedError, "expected one of absmean-g64, bitnet, uniform-d1"),
    ],
)
def test_what_makes_no_sense_is_refused(recipe: str, scheme, error, message: str, model, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        quantize(model(recipe), tmp_path / "out", form_named(scheme))
    assert list(tmp_path.iterdir()) == []


def test_the_command(model, tmp_path: Path, monkeypatch, capsys) -> None:
    source, out = model("llama-gqa"), tmp_path / "out"
    code, printed, _ = run_captured(monkeypatch, capsys, "quantize", source, "--scheme", "uniform-d1", "--dry-run")
    assert code == 0
    size = plan_quantization(source, form_named("uniform-d1")).weight_bytes
    assert f"Size: {size:,} bytes" in printed
    code, printed, _ = run_captured(monkeypatch, capsys, "quantize", source, out, "--scheme", "uniform-d1", "--packed")
    assert code == 0
    assert "Relative squared error" in printed
    code, printed, _ = run_captured(monkeypatch, capsys, "quantize", out, tmp_path / "plain", "--dequantize", "--json")
    assert code == 0
    assert json.loads(printed)["weight_bytes"] == weight_bytes(tmp_path / "plain")
    code, _, stderr = run_captured(monkeypatch, capsys, "quantize", source, out, "--scheme", "bitnet")
    assert (code, stderr.count("\n")) == (1, 1)
    assert run_captured(monkeypatch, capsys, "quantize", source, tmp_path / "x")[0] == 2

"""Merging LoRA adapters against PEFT's merge_and_unload() (golden/lora, recorded by record_lora.py)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import packed_checkpoints
from tests.checkpoints import build
from tests.command_line import run
from tests.lora_models import CASES, MODELS, row_step
from tests.pytorch_files import TINY
from tritgguf.converter import SourceError, TensorError, TritggufError, UnsupportedError, convert
from tritgguf.converter.checkpoint.adapter import open_adapter
from tritgguf.converter.checkpoint.adapter_config import read_adapter_config
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.checkpoint.merged_tensor import MergedTensor
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.core import kernels
from tritgguf.converter.core.tensors import Float32Array, SourceTensor
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.hf import open_hf_model

GOLDEN = Path(__file__).parents[2] / "golden" / "lora"
MERGED = np.load(GOLDEN / "merged.npz")
EPSILON = 2.0**-24  # half a unit in the last place of float32, relative


def merged(case: str, folder: Path) -> dict[str, SourceTensor]:
    name = CASES[case][0]
    return open_adapter(GOLDEN / case).merged(read_tensors(build(name, folder, MODELS[name])))


def whole(tensor: SourceTensor) -> Float32Array:
    return tensor.read(slice(None)).reshape(tensor.shape)


def bound(tensor: SourceTensor) -> Float32Array:
    """Return by how much two orders of the same float32 sums can differ, for each value.

    Each of the rank products, their sum, the scaling and the last sum round once, in both programs.
    """
    assert isinstance(tensor, MergedTensor)
    base, right = tensor.base.read(slice(None)), np.abs(tensor.right.rows(slice(None)))
    left = np.ones((1, 1)) if tensor.left is None else np.abs(tensor.left.rows(slice(None)))
    size = np.abs(base) + tensor.scaling * (left @ right.reshape(-1, base.shape[1]))
    steps = left.shape[1] + 3
    if tensor.magnitude is not None:  # the norm, the quotient and the product; the row is scaled to its magnitude
        found = np.abs(tensor.read(slice(None)))
        size, steps = found + size * (found.max() / np.abs(base).max()), steps + base.shape[1]
    return (2 * steps * EPSILON * size).reshape(tensor.shape)


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_peft_s(case: str, tmp_path: Path) -> None:
    before, found = read_tensors(build(CASES[case][0], tmp_path, MODELS[CASES[case][0]])), merged(case, tmp_path)
    assert found.keys() == before.keys()
    expected = {key.partition("/")[2]: values for key, values in MERGED.items() if key.startswith(f"{case}/")}
    assert expected
    for name, tensor in found.items():
        step = row_step(tensor.shape)
        values = whole(tensor)[::step]
        if name not in expected:
            np.testing.assert_array_equal(values, whole(before[name])[::step])
        elif isinstance(tensor, MergedTensor):
            assert (np.abs(values - expected[name]) <= bound(tensor)[::step]).all(), name
            assert np.abs(values - whole(before[name])[::step]).max() > 100 * bound(tensor).max(), name
        else:
            np.testing.assert_array_equal(values, expected[name])


def test_the_recorded_cases_use_what_they_are_named_for(tmp_path: Path) -> None:
    layers = {name: tensor for name, tensor in merged("patterns", tmp_path).items() if isinstance(tensor, MergedTensor)}
    scalings = {name.removeprefix("model.layers."): tensor.scaling for name, tensor in layers.items()}
    assert scalings == {
        "0.self_attn.q_proj.weight": 8 / 4,
        "0.self_attn.k_proj.weight": 8 / 3,
        "0.mlp.up_proj.weight": 5 / 4,
        "1.self_attn.q_proj.weight": 8 / 2,
        "1.self_attn.k_proj.weight": 7 / 3,
        "1.mlp.up_proj.weight": 8 / 4,
    }
    assert read_adapter_config(GOLDEN / "rslora").scaling("q_proj") == 3 / 2
    assert read_adapter_config(GOLDEN / "dora").dora
    assert all(part.dtype == "BF16" for part in open_adapter(GOLDEN / "bf16").updates.popitem()[1].values())


@pytest.mark.parametrize("case", ["plain", "embeddings", "dora", "bias"])
@pytest.mark.parametrize("how", ["numpy", "auto"])
def test_values_do_not_depend_on_how_rows_are_cut(case: str, how: str, tmp_path: Path, monkeypatch) -> None:
    changed = [tensor for tensor in merged(case, tmp_path).values() if isinstance(tensor, MergedTensor)]
    expected = [tensor.read(slice(None)) for tensor in changed]
    monkeypatch.setenv(kernels.VARIABLE, how)
    for tensor, values in zip(changed, expected, strict=True):
        n_rows = len(values)
        order = np.random.default_rng(7).permutation(n_rows)
        assert tensor.read(order).tobytes() == values[order].tobytes()
        some = [tensor.read(slice(first, first + 3)) for first in range(0, n_rows, 3)]
        assert np.concatenate(some).tobytes() == values.tobytes()


def test_nothing_is_rounded_to_the_checkpoint_s_dtype(tmp_path: Path) -> None:
    """The checkpoint is bf16, and PEFT would round the merged weights to it."""
    tensor = merged("plain", tmp_path)["model.layers.0.mlp.down_proj.weight"]
    assert isinstance(tensor, MergedTensor)
    assert (tensor.base.dtype, tensor.dtype) == ("BF16", "F32")
    assert (tensor.read(slice(None)).view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("case", ["plain", "embeddings", "saved", "dora"])
def test_the_file_holds_the_merged_weights(case: str, tmp_path: Path, monkeypatch, capsys) -> None:
    model = build(CASES[case][0], tmp_path / "model", MODELS[CASES[case][0]])
    out = tmp_path / "out.gguf"
    options = ["--embedding-type", "f32", "--output-type", "f32", "--no-check"]
    assert run(monkeypatch, "convert", model, out, "--lora", GOLDEN / case, *options) == 0
    assert f"the LoRA adapter {case} is merged into" in capsys.readouterr().err
    expected, file = merged(case, model), read_gguf(out)
    for spec in open_hf_model(model, load_tokenizer=False).specs:
        stored = file.tensors[spec.name]
        order = slice(None) if spec.rows is None or len(spec.shape) == 1 else spec.rows
        assert stored.dtype == "F32" or not isinstance(expected[spec.source], MergedTensor)
        np.testing.assert_array_equal(stored.read(slice(None)), expected[spec.source].read(order))


def test_verify_takes_the_adapter_too(tmp_path: Path, monkeypatch, capsys) -> None:
    model = build("lora-untied", tmp_path / "model", MODELS["lora-untied"])
    out = convert(model, tmp_path / "out.gguf", "q8_0", lora=GOLDEN / "plain", check=False).out
    assert run(monkeypatch, "verify", model, out, "--lora", GOLDEN / "plain") == 0
    assert run(monkeypatch, "verify", model, out) == 1
    assert "differs from the model" in capsys.readouterr().err


def copied(case: str, folder: Path, **edits: object) -> Path:
    """Copy a golden adapter, with keys of its config changed."""
    shutil.copytree(GOLDEN / case, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | edits))
    return folder


@pytest.mark.parametrize(
    ("edits", "error", "expected"),
    [
        ({"peft_type": "IA3"}, UnsupportedError, "peft_type is 'IA3'; expected LORA"),
        ({"peft_type": None}, UnsupportedError, "peft_type is None; expected LORA"),
        ({"layer_replication": [[0, 1], [0, 1]]}, UnsupportedError, r"layer_replication is \[\[0, 1\], \[0, 1\]\]"),
        ({"use_qalora": True}, UnsupportedError, "use_qalora is True"),
        ({"alora_invocation_tokens": [1, 2]}, UnsupportedError, "alora_invocation_tokens is"),
        ({"target_parameters": ["experts"]}, UnsupportedError, "target_parameters is"),
        ({"trainable_token_indices": [1]}, UnsupportedError, "trainable_token_indices is"),
        ({"a_key_of_next_year": "x"}, UnsupportedError, "a_key_of_next_year is 'x', and how that changes"),
        (
            {"init_lora_weights": "pissa"},
            UnsupportedError,
            "init_lora_weights 'pissa' changes the base model's weights",
        ),
        ({"init_lora_weights": "pissa_niter_16"}, UnsupportedError, "init_lora_weights 'pissa_niter_16'"),
        ({"init_lora_weights": 1}, UnsupportedError, "init_lora_weights 1 changes"),
        ({"use_dora": True}, SourceError, r"the adapter has no tensor \S*lora_magnitude_vector"),
        ({"lora_bias": True}, SourceError, r"the adapter has no tensor \S*lora_B.bias"),
        ({"r": 0}, SourceError, "r must be a positive integer, found 0"),
        ({"r": 8}, SourceError, r"lora_B.weight has the shape \(32, 4\), .* call for \(32, 8\)"),
        ({"lora_alpha": "8"}, SourceError, "lora_alpha must be a number"),
        ({"lora_alpha": float("nan")}, SourceError, "lora_alpha must be a number"),
        ({"use_rslora": "false"}, SourceError, "use_rslora must be true or false"),
        ({"rank_pattern": {"(": 4}}, SourceError, "rank_pattern holds an invalid pattern"),
        ({"rank_pattern": {"(.*)*x": 4}}, SourceError, "rank_pattern holds the pattern .* which can take for ever"),
        ({"alpha_pattern": {"q_proj": "4"}}, SourceError, "alpha_pattern.q_proj must be a number"),
        (
            {"target_modules": ["q_proj"]},
            SourceError,
            r"update of \S*down_proj, which target_modules in its config doesn't name",
        ),
        ({"target_modules": 5}, SourceError, "target_modules must be a list of texts"),
        ({"modules_to_save": ["lm_head"]}, SourceError, "modules_to_save in the adapter's config names lm_head.weight"),
    ],
)
def test_a_config_that_is_not_understood(edits: dict, error: type, expected: str, tmp_path: Path) -> None:
    folder = copied("plain", tmp_path / "adapter", **edits)
    tensors = read_tensors(build("lora-untied", tmp_path / "model", MODELS["lora-untied"]))
    with pytest.raises(error, match=expected):
        open_adapter(folder).merged(tensors)


def rewritten(case: str, folder: Path, change) -> Path:
    """Copy a golden adapter, with its tensors changed."""
    copied(case, folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"
ZEROS = np.zeros((1, 1), np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop(f"{Q}.lora_A.weight"), f"the adapter has no tensor {Q}.lora_A.weight"),
        (
            lambda t: (t.pop(f"{Q}.lora_A.weight"), t.pop(f"{Q}.lora_B.weight")),
            "names model.layers.0.self_attn.q_proj, but",
        ),
        (lambda t: t.update({f"{Q}.lora_B.bias": ZEROS}), "q_proj.lora_B.bias, which its config doesn't call for"),
        (
            lambda t: t.update({f"{Q}.lora_magnitude_vector": ZEROS}),
            "lora_magnitude_vector, which its config doesn't call",
        ),
        (
            lambda t: t.update({"x.lora_A.weight": ZEROS}),
            "holds x.lora_A.weight; expected names that begin with base_model",
        ),
        (lambda t: t.update({f"{Q}.lora_C.weight": ZEROS}), "q_proj.lora_C.weight, whose use isn't known here"),
        (
            lambda t: t.update({f"{Q}.modules_to_save.weight": ZEROS}),
            "modules_to_save.weight, whose use isn't known here",
        ),
        (lambda t: t.update({f"{Q}.lora_A.weight": ZEROS}), r"q_proj.lora_A.weight has the shape \(1, 1\)"),
        (lambda t: t.update({f"{Q}.lora_B.weight": ZEROS}), r"q_proj.lora_B.weight has the shape \(1, 1\)"),
        (lambda t: t.update({f"{Q}.weight": ZEROS}), r"q_proj.weight has the shape \(1, 1\)"),
        (lambda t: t.update({"base_model.model.extra.weight": ZEROS}), "the model has no tensor extra.weight"),
        (lambda t: t.update({f"{Q}.lora_A.weight": ZEROS.astype(np.int64)}), "holds I64; expected BF16, F16 or F32"),
        (lambda t: t.clear() or t.update({}), "holds an adapter without tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, expected: str, tmp_path: Path) -> None:
    folder = rewritten("plain", tmp_path / "adapter", change)
    tensors = read_tensors(build("lora-untied", tmp_path / "model", MODELS["lora-untied"]))
    with pytest.raises(TritggufError, match=expected):
        open_adapter(folder).merged(tensors)


@pytest.mark.parametrize(("value", "expected"), [(np.nan, "has 1 NaN or Inf"), (3e38, "row 0 isn't finite")])
def test_an_adapter_that_is_not_finite(value: float, expected: str, tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        tensors[f"{Q}.lora_A.weight"][0, 0] = value
        tensors[f"{Q}.lora_B.weight"][0, 0] = 3e38

    adapter = open_adapter(rewritten("plain", tmp_path / "adapter", change))
    found = adapter.merged(read_tensors(build("lora-untied", tmp_path / "model", MODELS["lora-untied"])))
    with pytest.raises(TensorError, match=expected):
        found["model.layers.0.self_attn.q_proj.weight"].read(slice(None))


DOWN = "model.layers.0.mlp.down_proj.weight"


def lora_of(model: Path, folder: Path) -> Path:
    """Write an adapter for one layer of a model."""
    tensors = open_checkpoint(model, {DOWN}).tensors
    assert tensors
    shape = tensors[DOWN].shape
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    rng = np.random.default_rng(3)
    folder.mkdir()
    left, right = rng.standard_normal((shape[0], 2)), rng.standard_normal((2, shape[1]))
    tensors = {f"{name}A.weight": right.astype(np.float32), f"{name}B.weight": left.astype(np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "target_modules": r".*layers\.0\.mlp\.down_proj"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("recipe", ["ternary floats", "packed", "latent"])
def test_ternary_weights_are_merged_only_where_a_type_is_chosen(recipe: str, tmp_path: Path) -> None:
    builders = {
        "ternary floats": lambda folder: build("llama-tied", folder),
        "packed": lambda folder: packed_checkpoints.build("llama-rows", folder),
        "latent": lambda folder: packed_checkpoints.build("1bitllm", folder),
    }
    model = builders[recipe](tmp_path / "model")
    adapter = lora_of(model, tmp_path / "adapter")
    out = tmp_path / "out.gguf"
    with pytest.raises(
        UnsupportedError, match=r"without the adapter its values are on a ternary grid .* add --type f16"
    ):
        convert(model, out, lora=adapter, check=False)
    kept = convert(model, out, "f16", lora=adapter, check=False).plan
    chosen = convert(model, out, tensor_type=["blk.0.ffn_down=f16"], lora=adapter, check=False, force=True).plan
    for plan in (kept, chosen):
        found = next(tensor for tensor in plan.tensors if tensor.spec.name == "blk.0.ffn_down.weight")
        assert (found.codec.name, found.exact) == ("f16", False)


def test_what_an_adapter_cannot_be_merged_into(tmp_path: Path, monkeypatch, capsys) -> None:
    model = build("lora-untied", tmp_path / "model", MODELS["lora-untied"])
    file = convert(model, tmp_path / "file.gguf", "f16", check=False).out
    out, adapter = tmp_path / "out.gguf", GOLDEN / "plain"
    assert run(monkeypatch, "convert", file, out, "--lora", adapter) == 1
    assert "is a GGUF file, whose tensors are named" in capsys.readouterr().err
    assert run(monkeypatch, "convert", model, out, "--lora", tmp_path) == 1
    assert "has no adapter_config.json; expected the folder of a PEFT adapter" in capsys.readouterr().err
    (model / "model.safetensors").unlink()
    assert run(monkeypatch, "convert", model, out, "--lora", adapter, "--type", "f16", "--dry-run") == 1
    assert "holds no weights, so there is nothing to merge" in capsys.readouterr().err


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = build("tiny", tmp_path / "model", TINY)
    with pytest.raises(UnsupportedError, match=r"changes model\.embed_tokens\.weight, which config.json ties"):
        convert(model, tmp_path / "out.gguf", "f16", lora=GOLDEN / "embeddings", check=False)


def test_an_adapter_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    folder = copied("plain", tmp_path / "adapter")
    tensors = open_adapter(folder).merged(read_tensors(build("lora-untied", tmp_path / "m", MODELS["lora-untied"])))
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(100)
    changed = next(tensor for tensor in tensors.values() if isinstance(tensor, MergedTensor))
    for read in (changed.require_unchanged, lambda: changed.read(slice(0, 1))):
        with pytest.raises(SourceError, match=r"adapter_model\.safetensors changed from [0-9,]+ to 100 bytes"):
            read()

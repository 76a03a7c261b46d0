"""Which type a tensor gets: auto by target, explicit types on grids they can't hold, embeddings, notes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import tritgguf.runtime
from tests import packed_checkpoints
from tests.checkpoints import build
from tests.oracles import libggml
from tritgguf.converter import TensorError, UnsupportedError, convert, plan
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.decoder import pair_neighbours
from tritgguf.converter.planning.targets import TARGETS, is_x86, ternary_types


def rewritten(folder: Path, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """Write a checkpoint's weights again as float32 in one file, its linear ones changed."""
    tensors = {}
    for name, tensor in read_tensors(folder).items():
        values = tensor.read(slice(None)).reshape(tensor.shape)
        tensors[name] = change(name, values) if name.endswith("_proj.weight") else values
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def regrid(folder: Path, group: int, *, outlier: bool = False, highest: int = 1) -> Path:
    """Put every linear weight on a grid per `group` columns, with fp16-exact scales."""

    def on_grid(name: str, values: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(len(name))
        codes = rng.integers(-highest, highest + 1, values.shape).astype(np.float32)
        scales = rng.integers(1, 64, (values.shape[0], values.shape[1] // group)).astype(np.float32) / 512
        changed = codes * np.repeat(scales, group, axis=1)
        if outlier and "layers.0.mlp.down_proj" in name:
            changed[3, 5] = 0.7071
        return changed

    return rewritten(folder, on_grid)


@pytest.fixture
def grid128(tmp_path: Path) -> Path:
    return regrid(build("llama-biases", tmp_path / "model"), 128)


def linear_types(planned) -> set[str]:
    return {tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear"}


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("type_name", ["tq2_0", "tq1_0", "q2_k"])
def test_a_type_with_wider_blocks_stops_and_names_what_is_exact(group: int, type_name: str, tmp_path: Path) -> None:
    model = regrid(build("llama-biases", tmp_path / "model"), group)
    exact = "--type q2_0, --type q4_0" if group >= 64 else "--type q4_0"
    expected = (
        rf"ternary grid per {group} columns, which {type_name} can't hold: .* by [1-9][0-9]?% .* exact are {exact}"
    )
    with pytest.raises(TensorError, match=expected):
        plan(model, type_name)
    lossy = plan(model, type_name, allow_lossy=True)
    assert linear_types(lossy) == {type_name}
    assert all(tensor.exact is False for tensor in lossy.tensors if tensor.spec.role == "linear")


def test_the_error_that_is_named_is_the_one_that_would_be_made(grid128: Path, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="which tq2_0 can't hold") as stopped:
        plan(grid128, "tq2_0", threads=1)
    source, message = str(stopped.value).split(": ", 1)
    weights = read_tensors(grid128)[source].read(slice(None))
    result = convert(grid128, tmp_path / "out.gguf", type="tq2_0", allow_lossy=True, check=False)
    (name,) = [tensor.spec.name for tensor in result.plan.tensors if tensor.spec.source == source]
    stored = read_gguf(result.out).tensors[name]
    values = libggml.dequantize(stored.data.reshape(len(weights), -1), stored.ggml_type)
    rows = pair_neighbours(4, 64) if "q_proj" in source else slice(None)
    made = np.linalg.norm(values - weights[rows]) / np.linalg.norm(weights)
    assert f"by {made:.0%} (relative error)" in message


@pytest.mark.parametrize(("target", "names"), [(target, ternary_types(target)) for target in TARGETS])
def test_auto_takes_what_holds_a_128_grid_on_each_target(target: str, names: tuple[str, ...], grid128: Path) -> None:
    slow = target == "cpu" and is_x86()
    expected = next(name for name in names if name in ("q2_0", "q4_0") and not (slow and name == "q2_0"))
    planned = plan(grid128, target=target)
    assert linear_types(planned) == {expected}
    assert all(tensor.exact for tensor in planned.tensors if tensor.spec.role == "linear")
    assert any("q2_0" in note for note in planned.notes) == slow


def test_q2_0_on_x86_is_chosen_only_with_a_word(grid128: Path) -> None:
    planned = plan(grid128, "q2_0")
    assert linear_types(planned) == {"q2_0"}
    assert any("no fast code on x86" in note for note in planned.notes) == is_x86()


def test_where_the_runtime_multiplies_q2_0_fast_auto_takes_it_on_x86_too(grid128: Path, monkeypatch) -> None:
    monkeypatch.setattr("tritgguf.converter.planning.targets.is_x86", lambda: True)
    planned = plan(grid128, fast_here=["q2_0"])
    assert linear_types(planned) == {"q2_0"}
    assert [note for note in planned.notes if "q2_0" in note] == [
        "q2_0 runs fast here with tritgguf's own CPU kernels; other programs have no fast code for it on x86: "
        "--for any chooses types that are fast everywhere"
    ]
    everywhere = plan(grid128, target="any", fast_here=["q2_0"])
    assert linear_types(everywhere) == {"q4_0"}
    assert not any("q2_0" in note for note in everywhere.notes)


def test_an_outlier_keeps_a_tensor_from_being_exact_and_auto_from_choosing_ternary(tmp_path: Path) -> None:
    model = regrid(build("llama-biases", tmp_path / "model"), 128, outlier=True)
    planned = plan(model, target="cuda")
    (outlier,) = [t for t in planned.tensors if t.spec.role == "linear" and t.codec.name != "q2_0"]
    assert outlier.spec.source == "model.layers.0.mlp.down_proj.weight"
    assert outlier.codec.name == "f32"
    assert outlier.exact
    with pytest.raises(TensorError, match="1 of 131072 values are off it"):
        plan(model, "q2_0")


def test_nine_levels_are_kept_as_floats_and_stop_a_ternary_type(tmp_path: Path) -> None:
    model = regrid(build("llama-biases", tmp_path / "model"), 16, highest=4)
    assert linear_types(plan(model)) == {"f16"}
    with pytest.raises(TensorError, match="9-level grid per 16 columns, which tq2_0 can't hold"):
        plan(model, "tq2_0")
    for name in ("q8_0", "q6_k"):
        assert linear_types(plan(model, name)) == {name}


def test_ordinary_weights_are_kept_by_auto(tmp_path: Path) -> None:
    planned = plan(build("llama-gqa", tmp_path / "model"))
    assert linear_types(planned) <= {"f16", "bf16"}
    assert all(tensor.exact for tensor in planned.tensors if tensor.spec.role == "linear")
    assert any("no linear tensor is on a grid" in note for note in planned.notes)


@pytest.mark.parametrize(("recipe", "honoured"), [("llama-gqa", True), ("qwen3", True), ("qwen2", False)])
def test_a_scale_that_fp16_rounds_is_kept_beside_where_the_graph_honours_it(recipe, honoured, tmp_path: Path) -> None:
    scale = np.float32(0.0123456789)
    model = rewritten(build(recipe, tmp_path / "model"), lambda _name, values: np.sign(values) * scale)
    planned = plan(model, "tq2_0")
    kept = [tensor for tensor in planned.tensors if tensor.spec.name.endswith(".scale")]
    linear = [tensor for tensor in planned.tensors if tensor.spec.role == "linear"]
    assert len(kept) == (len(linear) if honoured else 0)
    assert all(tensor.exact is honoured for tensor in linear)
    assert all(tensor.spec.data is not None and tensor.spec.data[0] == scale for tensor in kept)


@pytest.mark.parametrize(("option", "role"), [("embedding_type", "embedding"), ("output_type", "output")])
@pytest.mark.parametrize("name", ["f16", "bf16", "f32", "q8_0", "q6_k"])
def test_embeddings_and_output_get_the_type_that_was_asked_for(option: str, role: str, name: str, tmp_path) -> None:
    planned = plan(build("llama-gqa", tmp_path / "model"), "f16", **{option: name})
    assert {tensor.codec.name for tensor in planned.tensors if tensor.spec.role == role} == {name}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"type": "q3_9"}, "unknown tensor type 'q3_9'; expected one of auto, bf16"),
        ({"target": "tpu"}, "unknown target 'tpu'; expected one of cpu, cuda"),
        ({"method": "awq"}, "unknown method 'awq'; expected one of absmean, four_levels, mse, or gptq"),
        ({"fallback": "q4_0"}, "unknown fallback 'q4_0'; expected f16"),
        ({"embedding_type": "q9"}, "unknown tensor type 'q9'"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(arguments, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=expected):
        plan(build("llama-gqa", tmp_path / "model"), **arguments)


@pytest.mark.parametrize("type_name", ["q2_0", "q4_0"])
def test_ternary_embeddings_may_stay_ternary(type_name: str, tmp_path: Path) -> None:
    """The 14B seed packs its embeddings and output layer too, per 64 columns."""
    model = packed_checkpoints.build("14b-seed", tmp_path / "model")
    floats = convert(model, tmp_path / "f16.gguf", "q2_0").out
    kept = convert(model, tmp_path / "kept.gguf", "q2_0", embedding_type=type_name, output_type=type_name)
    ends = [tensor for tensor in kept.plan.tensors if tensor.spec.role in ("embedding", "output")]
    assert {tensor.codec.name for tensor in ends} == {type_name}
    assert kept.out.stat().st_size < floats.stat().st_size
    before, after = read_gguf(floats).tensors, read_gguf(kept.out).tensors
    for tensor in ends:
        stored = after[tensor.spec.name]
        values = libggml.dequantize(stored.data.reshape(stored.shape[0], -1), stored.ggml_type)
        np.testing.assert_array_equal(values.astype(np.float16), before[tensor.spec.name].read(slice(None)))
    with tritgguf.runtime.open(kept.out, n_ctx=64) as session:
        assert np.isfinite(session.logits([5, 6, 7])).all()


@pytest.mark.parametrize("target", [target for target in TARGETS if target != "cpu"])
def test_a_model_that_only_this_runtime_computes_is_made_for_nothing_else(target: str, tmp_path: Path) -> None:
    model = packed_checkpoints.build("2b4t", tmp_path / "model")
    assert linear_types(plan(model)) == {"tq1_0"}
    with pytest.raises(UnsupportedError, match=rf"bitnet-b1.58 file runs in tritgguf's own runtime .* --for {target}"):
        plan(model, target=target)

"""Token embeddings and the output layer: which types they get, and what the real runtime computes with each."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from safetensors.numpy import save_file

import tritgguf.runtime
from tests.checkpoints import build
from tests.gguf_edit import rewrite
from tests.oracles import libggml
from tritgguf.converter import Conversion, FilePlan, TensorError, UnsupportedError, convert, plan
from tritgguf.converter.checkpoint.safetensors_reader import read_tensors
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.planning.targets import ANY, TARGETS
from tritgguf.converter.quant.codec import codecs, float_codecs, ternary_codecs

Floats = NDArray[np.float32]
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
UNTIED, TIED = "llama-gqa", "llama-tied"  # recipes; their linear layers stay F16 here
# Kernels of matrix products round activations to 8 bits, with a scale per 32 or 256 of them. Of normal values that is
# an error of 0.5 or 0.7 %: the largest of 256 is 2.9 standard deviations, so a step is 2.9 / 127 of one, and rounding
# to it is off by 1 / sqrt(12) of a step.
ACTIVATIONS = 1.2e-2
IDS = list(range(5, 60))


def on_grid(rng: np.random.Generator, shape: tuple[int, int], group: int, levels: int) -> Floats:
    """Return codes of that many levels times fp16 scales, one per `group` columns."""
    codes = rng.integers(-1, levels - 1, shape).astype(np.float32)
    scales = rng.uniform(0.01, 0.1, (shape[0], shape[1] // group)).astype(np.float16).astype(np.float32)
    return np.asarray(codes * scales.repeat(group, axis=1))


def with_ends(folder: Path, recipe: str, ends: Callable[[str, tuple[int, int]], Floats]) -> Path:
    """Write a recipe's checkpoint with other token embeddings and, where it has one, another output layer."""
    build(recipe, folder)
    tensors = {name: tensor.read(slice(None)).reshape(tensor.shape) for name, tensor in read_tensors(folder).items()}
    for name in tensors:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = ends(name, tensors[name].shape)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def grids(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the checkpoint of a recipe whose embeddings and output layer are on a grid; for reading only."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(recipe: str, group: int = 256, levels: int = 3) -> Path:
        rng = np.random.default_rng([group, levels])
        return with_ends(
            root / f"{recipe}-{group}-{levels}", recipe, lambda _, shape: on_grid(rng, shape, group, levels)
        )

    return folder


def types_of(planned: FilePlan) -> tuple[str, ...]:
    """Return the types of the embeddings and of the output layer, if there is one."""
    kinds = {tensor.spec.role: tensor.codec.name for tensor in planned.tensors}
    return tuple(kinds[role] for role in ("embedding", "output") if role in kinds)


def logits(file: Path) -> Floats:
    with tritgguf.runtime.open(file, n_ctx=64) as session:
        return session.logits(IDS)


def relative_error(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def stored_values(written: Conversion, name: str) -> Floats:
    """Return a tensor's values as ggml reads the file's bytes."""
    tensor = read_gguf(written.out).tensors[name]
    return libggml.dequantize(tensor.data.reshape(tensor.shape[0], -1), tensor.ggml_type)


# --- auto ------------------------------------------------------------------------------------------------------------

# Embeddings and output layer, then tied embeddings: rows are looked up, the output layer is multiplied with.
BY_TARGET = {
    (256, 3): {
        "cpu": ("tq1_0 tq1_0", "tq1_0"),
        "cuda": ("q2_0 q2_0", "q2_0"),
        "metal": ("tq2_0 tq2_0", "tq2_0"),
        "vulkan": ("tq1_0 tq1_0", "tq1_0"),
        "ollama": ("q2_k q2_k", "q2_k"),
        "any": ("q2_k q2_k", "q2_k"),
    },
    (128, 3): {
        "cpu": ("q2_0 q4_0", "q4_0"),
        "cuda": ("q2_0 q2_0", "q2_0"),
        "metal": ("q2_0 q2_0", "q2_0"),
        "vulkan": ("q2_0 q2_0", "q2_0"),
        "ollama": ("q4_0 q4_0", "q4_0"),
        "any": ("q4_0 q4_0", "q4_0"),
    },
    (64, 4): {"cpu": ("q2_0 q4_0", "q4_0"), "cuda": ("q2_0 q2_0", "q2_0"), "ollama": ("q4_0 q4_0", "q4_0")},
    (16, 3): {"cpu": ("f16 f16", "f16"), "any": ("f16 f16", "f16")},
}


@pytest.mark.parametrize(
    ("group", "levels", "target"), [(*grid, target) for grid, targets in BY_TARGET.items() for target in targets]
)
def test_auto_takes_the_smallest_exact_type_for_each_target(
    group: int, levels: int, target: str, grids, monkeypatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for recipe, expected in zip((UNTIED, TIED), BY_TARGET[group, levels][target], strict=True):
        planned = plan(grids(recipe, group, levels), target=target)
        assert " ".join(types_of(planned)) == expected
        assert all(tensor.exact for tensor in planned.tensors if tensor.codec.name in ternary_codecs())
        asked = plan(grids(recipe, group, levels), "f16", target=target, embedding_type="auto", output_type="auto")
        assert " ".join(types_of(asked)) == expected
        assert set(types_of(plan(grids(recipe, group, levels), "f16", target=target))) == {"f16"}


def test_elsewhere_than_on_x86_q2_0_multiplies_fast(grids, monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert types_of(plan(grids(UNTIED, 128))) == ("q2_0", "q2_0")
    assert types_of(plan(grids(TIED, 128))) == ("q2_0",)


def test_the_fastest_type_is_for_what_is_multiplied_not_for_what_is_looked_up(grids) -> None:
    seconds = {"tq1_0": 2.0, "tq2_0": 1.0}
    assert types_of(plan(grids(UNTIED), seconds_per_weight=seconds)) == ("tq1_0", "tq2_0")
    assert types_of(plan(grids(TIED), seconds_per_weight=seconds)) == ("tq2_0",)


def test_floats_stay_f16_and_their_sizes_are_as_planned(tmp_path: Path) -> None:
    model = build(UNTIED, tmp_path / "model")
    written = convert(model, tmp_path / "out.gguf", check=False)
    assert types_of(written.plan) == ("f16", "f16")
    assert written.plan.file_bytes == plan(model).file_bytes == written.out.stat().st_size


def test_a_gguf_source_s_ends_stay_unless_a_smaller_type_holds_them(grids, tmp_path: Path) -> None:
    f16 = convert(grids(UNTIED), tmp_path / "f16.gguf", "f16", check=False).out
    assert types_of(plan(f16)) == ("tq1_0", "tq1_0")
    assert types_of(plan(f16, "tq2_0")) == ("f16", "f16")
    assert types_of(plan(f16, "tq2_0", embedding_type="auto")) == ("tq1_0", "f16")
    small = convert(f16, tmp_path / "small.gguf", check=False).out
    assert types_of(plan(small, "q8_0")) == ("tq1_0", "tq1_0")
    assert types_of(plan(small, target="cuda")) == ("q2_0", "q2_0")
    q8 = convert(build(UNTIED, tmp_path / "model"), tmp_path / "q8.gguf", "f16", embedding_type="q8_0", check=False)
    assert types_of(plan(q8.out)) == ("q8_0", "f16")


def test_a_gguf_source_s_embeddings_that_cannot_be_read_stay(grids, tmp_path: Path) -> None:
    """The package gguf reads no Q8_K, for example."""
    f16 = convert(grids(UNTIED), tmp_path / "f16.gguf", "f16", check=False).out
    kind = GGMLQuantizationType.Q8_K
    stored = np.zeros((read_gguf(f16).tensors[EMBEDDING].shape[0], GGML_QUANT_SIZES[kind][1]), np.uint8)
    odd = rewrite(f16, tmp_path / "odd.gguf", tensors={EMBEDDING: (stored, kind)})
    assert types_of(plan(odd)) == ("q8_k", "tq1_0")
    with pytest.raises(UnsupportedError, match="is Q8_K, which gguf's Python package can't dequantize"):
        plan(odd, embedding_type="f16")


def test_auto_needs_weights(tmp_path: Path) -> None:
    folder = build(UNTIED, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert types_of(plan(folder, "f16", embedding_type="q6_k")) == ("q6_k", "f16")
    with pytest.raises(UnsupportedError, match=r"no weights here, .*: add --embedding-type, such as .* f16$"):
        plan(folder, "f16", embedding_type="auto")


def test_eight_billion_parameters_need_a_seventh_of_the_bytes() -> None:
    """The embeddings and the output layer of Qwen3-8B's shape, in which Ternary-Bonsai-8B comes, on a grid per 128."""
    n_rows, n_columns = 151_936, 4096
    sizes = {name: 2 * n_rows * codecs()[name].row_bytes(n_columns) for name in ("f16", "q2_0")}
    assert sizes == {"f16": 2_489_319_424, "q2_0": 350_060_544}


# --- the runtime -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [UNTIED, TIED])
@pytest.mark.parametrize(
    ("name", "levels"), [(name, levels) for name, codec in ternary_codecs().items() for levels in codec.exact_levels]
)
def test_exact_types_compute_what_f16_does(name: str, recipe: str, levels: int, grids, tmp_path: Path) -> None:
    """Looked up rows are the same floats, so without the output layer the logits are equal to the last bit."""
    model = grids(recipe, 256, levels)
    expected = logits(convert(model, tmp_path / "f16.gguf", "f16", check=False).out)
    rows = convert(model, tmp_path / "rows.gguf", "f16", embedding_type=name, check=False)
    both = convert(model, tmp_path / "both.gguf", "f16", embedding_type=name, output_type=name, check=False)
    assert types_of(both.plan) == (name,) * (1 if recipe == TIED else 2)
    assert all(tensor.exact for tensor in both.plan.tensors if tensor.codec.name == name)
    for written in (rows, both):
        assert written.plan.file_bytes == written.out.stat().st_size
    if recipe == UNTIED:
        np.testing.assert_array_equal(logits(rows.out), expected)
    assert relative_error(logits(both.out), expected) < ACTIVATIONS


@pytest.mark.parametrize("name", [*float_codecs(), "q4_0"])
def test_lossy_types_compute_with_what_ggml_reads(name: str, tmp_path: Path) -> None:
    """The logits are those of the same model whose embeddings are the values that ggml reads in the file, as floats."""
    written = convert(build(UNTIED, tmp_path / "a"), tmp_path / "a.gguf", "f16", embedding_type=name, check=False)
    assert types_of(written.plan) == (name, "f16")
    values = read_gguf(written.out).tensors[EMBEDDING].read(slice(None))
    if name not in ("f32", "f16", "bf16"):
        np.testing.assert_array_equal(values, stored_values(written, EMBEDDING))
    original = read_tensors(tmp_path / "a")["lm_head.weight"].read(slice(None))
    floats = with_ends(tmp_path / "b", UNTIED, lambda key, _shape: original if key == "lm_head.weight" else values)
    same = convert(floats, tmp_path / "b.gguf", "f16", embedding_type="f32", check=False)
    np.testing.assert_array_equal(logits(written.out), logits(same.out))


@pytest.mark.parametrize("name", [*float_codecs(), "q4_0"])
def test_a_tied_lossy_type_computes_with_what_ggml_reads(name: str, tmp_path: Path) -> None:
    written = convert(build(TIED, tmp_path / "a"), tmp_path / "a.gguf", "f16", embedding_type=name, check=False)
    values = read_gguf(written.out).tensors[EMBEDDING].read(slice(None))
    floats = with_ends(tmp_path / "b", TIED, lambda _key, _shape: values)
    same = convert(floats, tmp_path / "b.gguf", "f16", embedding_type="f32", check=False)
    assert relative_error(logits(written.out), logits(same.out)) < ACTIVATIONS


# --- loss, and what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q4_k", "q4_0", "q3_k", "nvfp4"])
def test_the_loss_is_noted_as_ggml_measures_it(name: str, tmp_path: Path) -> None:
    written = convert(build(UNTIED, tmp_path / "a"), tmp_path / "a.gguf", "f16", embedding_type=name, check=False)
    original = read_tensors(tmp_path / "a")["model.embed_tokens.weight"].read(slice(None))
    error = relative_error(stored_values(written, EMBEDDING), original)
    (note,) = [note for note in written.plan.notes if "relative error" in note]
    assert note == f"token_embd.weight isn't stored exactly as {name}: relative error {error:.2g}"
    (tensor,) = [tensor for tensor in written.plan.tensors if tensor.spec.name == EMBEDDING]
    assert tensor.exact is False
    assert math.isclose(tensor.error or 0, error, rel_tol=1e-3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-7, 1e-20, 1e-34, 1e5])
def test_floats_become_q4_0_as_ggml_makes_it(size: float, seed: int) -> None:
    codec = ternary_codecs()["q4_0"].any_floats
    assert codec is not None
    values = (np.random.default_rng(seed).standard_normal((16, 1024)) * size).astype(np.float32)
    values[3, :64] = 0
    np.testing.assert_array_equal(codec.encode(values), libggml.quantize(values, codec.ggml_type))
    with pytest.raises(TensorError, match=r"a value is (600000|nan|inf), but q4_0 ends at 5.24e\+05"):
        codec.encode(np.full((1, 32), {0: 6e5, 1: np.nan, 2: np.inf}[seed], np.float32))
    assert not libggml.dequantize(codec.encode(np.full((1, 32), 1e-38, np.float32)), codec.ggml_type).any()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"embedding_type": "q2_k"},
            r"model\.embed_tokens\.weight isn't on a grid of three or four levels, and q2_k is only written for these "
            r"here: choose another type, such as --embedding-type q3_k$",
        ),
        ({"output_type": "q9"}, r"unknown tensor type 'q9'; expected one of auto, bf16, f16"),
    ],
)
def test_a_type_that_cannot_hold_floats_is_refused(choices: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises((TensorError, UnsupportedError), match=message):
        plan(build(UNTIED, tmp_path / "model"), "f16", **choices)


def test_a_type_that_cannot_hold_the_grid_is_refused(grids) -> None:
    with pytest.raises(TensorError, match=r"which tq2_0 can't hold: .* exact are --embedding-type q2_0, --embedding-"):
        plan(grids(UNTIED, 64), "f16", embedding_type="tq2_0")


@pytest.mark.parametrize(
    ("name", "without"),
    [("tq1_0", "cuda metal ollama"), ("tq2_0", "cuda ollama"), ("nvfp4", "cuda metal ollama"), ("q8_0", "")],
)
def test_rows_that_a_target_cannot_look_up_are_noted(name: str, without: str, grids) -> None:
    """A type that Ollama refuses is an error there, and no note."""
    for target in (target for target in TARGETS if target not in (ANY, "ollama")):
        notes = plan(grids(UNTIED), "f16", target=target, embedding_type=name).notes
        assert any(f"looks rows up in {name}" in note for note in notes) is (target in without.split()), target
    assert {target for target in TARGETS if target != ANY and target in without.split()} == (
        {target for target in TARGETS if target != ANY} - set(codecs()[name].rows_read_on)
    )


def test_codecs_name_only_targets() -> None:
    for codec in codecs().values():
        assert set(codec.rows_read_on) <= {*TARGETS} - {ANY}, codec.name

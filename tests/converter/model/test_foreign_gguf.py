"""GGUF files of other programs become files of llama.cpp: the same weights as ggml reads them, and the same logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest

import tritgguf.runtime
from tests import bitnet_model, gguf_weights
from tests import foreign_gguf as files
from tritgguf.converter import UnsupportedError, convert, plan
from tritgguf.converter.core import kernels
from tritgguf.converter.inspection.inspection import inspect
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIds
from tritgguf.converter.verification.verification import verify

N_TOKENS = 24
# Activations in 8 bits cost about 2e-2; the F16 KV cache 5e-4.
LOGITS_ERROR = 5e-2
EXACT = {
    "Q2_0-g128": ("q2_0", "q4_0", "f16"),
    "PQ2_0": ("q2_0", "q4_0", "f16"),
    "PTQ1_0": ("q2_0", "q4_0", "f16"),
    "STQ1_0": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0", "f16"),
    "STQ1_0 (43)": ("tq2_0",),
    "I2_S": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0", "f16"),
    "IQ1_BN": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0", "f16"),
    "IQ2_BN": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0", "f16"),
}


def foreign_file(folder: Path, name: str, **options: bool) -> tuple[Path, dict[str, np.ndarray]]:
    """Write a small llama with all matrices of a type; return it and the weights."""
    stored, weights = files.model(files.KINDS[name], **options)
    base = files.base_file(folder / "base.gguf")
    return files.add_tensors(base, folder / "foreign.gguf", stored), weights


def f16_file(folder: Path, weights: Mapping[str, np.ndarray]) -> Path:
    stored = {name: (values.shape, 1, values.astype(np.float16).tobytes()) for name, values in weights.items()}
    return files.add_tensors(folder / "base.gguf", folder / "f16.gguf", stored)


def dequantized(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: gguf_weights.dequantized(tensor) for tensor in gguf.GGUFReader(path).tensors}


@contextmanager
def no_token_ids(folder: Path | None) -> Iterator[ReadTokenIds]:
    """Stand in for the runtime's vocabulary, which isn't what these tests are about."""
    yield lambda path, texts: TokenIds([[0] for _ in texts], None)


def logits(path: Path) -> np.ndarray:
    with tritgguf.runtime.open(path, n_ctx=N_TOKENS) as session:
        return session.logits([number * 7 % files.VOCAB for number in range(N_TOKENS)])


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("how", ["numpy", "compiled"])
@pytest.mark.parametrize("name", files.KINDS)
def test_ggml_reads_the_reference_weights_from_every_type(name: str, how: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, how)
    source, weights = foreign_file(tmp_path, name)
    for type_name in EXACT[name]:
        result = convert(source, tmp_path / "out.gguf", type=type_name, check=False, force=True)
        assert all(tensor.exact for tensor in result.plan.tensors)
        found, types = dequantized(result.out), gguf_weights.types(result.out)
        for tensor_name, values in weights.items():
            np.testing.assert_array_equal(found[tensor_name], values, err_msg=tensor_name)
            if tensor_name.startswith("blk."):
                assert types[tensor_name] == type_name


@pytest.mark.parametrize("name", ["Q2_0-g128", "PQ2_0", "PTQ1_0", "STQ1_0", "I2_S", "IQ1_BN", "IQ2_BN"])
def test_the_runtime_computes_the_logits_of_the_f16_file(name: str, tmp_path: Path) -> None:
    source, weights = foreign_file(tmp_path, name)
    expected = logits(f16_file(tmp_path, weights))
    for type_name in ("f16", EXACT[name][0]):
        out = convert(source, tmp_path / "out.gguf", type=type_name, check=False, force=True).out
        assert relative_error(logits(out), expected) < LOGITS_ERROR
        assert verify(source, out, token_ids=no_token_ids).problems == []
    _, others = files.model(files.KINDS["PQ2_0" if name != "PQ2_0" else "PTQ1_0"])
    wrong = {key: values[::-1] if "attn_q" in key else others[key] for key, values in weights.items()}
    assert relative_error(logits(f16_file(tmp_path, wrong)), expected) > 10 * LOGITS_ERROR


@pytest.mark.parametrize(("target", "expected"), [("cuda", "Q2_0"), ("ollama", "Q4_0"), ("any", "Q4_0")])
def test_embeddings_and_output_get_the_smallest_exact_type_of_the_target(
    target: str, expected: str, tmp_path: Path
) -> None:
    source, _ = foreign_file(tmp_path, "Q2_0-g128")
    found = {tensor.spec.name: tensor for tensor in plan(source, target=target).tensors}
    for name in ("token_embd.weight", "output.weight", "blk.0.attn_q.weight"):
        assert (found[name].codec.name.upper(), found[name].exact) == (expected, True)
    chosen = plan(source, embedding_type="f16", output_type="q8_0").tensors
    types = {tensor.spec.name: tensor.codec.name for tensor in chosen}
    assert (types["token_embd.weight"], types["output.weight"]) == ("f16", "q8_0")


def test_halves_of_one_scale_fit_tq(tmp_path: Path) -> None:
    base, kind = files.base_file(tmp_path / "base.gguf"), files.KINDS["Q2_0-g128"]
    codes, scales = files.coded(kind, (40, 512), 0)
    scales = np.repeat(scales[:, ::2], 2, axis=1)
    source = files.add_tensors(base, tmp_path / "in.gguf", {"blk.0.attn_q.weight": kind.tensor(codes, scales)})
    for type_name in ("tq1_0", "tq2_0", "q2_k"):
        out = convert(source, tmp_path / "out.gguf", type=type_name, check=False, force=True).out
        np.testing.assert_array_equal(dequantized(out)["blk.0.attn_q.weight"], files.weights(codes, scales))


@pytest.mark.parametrize("how", ["numpy", "compiled"])
@pytest.mark.parametrize("type_name", ["q2_0", "q4_0"])
def test_four_levels_are_stored_exactly(type_name: str, how: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, how)
    base, kind = files.base_file(tmp_path / "base.gguf"), files.KINDS["PQ2_0"]
    codes, scales = files.coded(kind, (40, 512), 0)
    codes[codes > 0] = np.random.default_rng(1).integers(1, 3, (codes > 0).sum())
    source = files.add_tensors(base, tmp_path / "in.gguf", {"blk.0.attn_q.weight": kind.tensor(codes, scales)})
    out = convert(source, tmp_path / "out.gguf", type=type_name, check=False).out
    np.testing.assert_array_equal(dequantized(out)["blk.0.attn_q.weight"], files.weights(codes, scales))


@pytest.mark.parametrize("name", ["I2_S", "IQ2_BN"])
def test_a_float32_scale_is_rounded_to_fp16_and_told(name: str, tmp_path: Path) -> None:
    source, weights = foreign_file(tmp_path, name, fp16=False)
    result = convert(source, tmp_path / "out.gguf", type="tq2_0", check=False)
    found = dequantized(result.out)
    for plan_of in (tensor for tensor in result.plan.tensors if tensor.spec.name in weights):
        expected = weights[plan_of.spec.name]
        has_scale = plan_of.spec.name.replace(".weight", ".scale") in found
        own = found.get(plan_of.spec.name.replace(".weight", ".scale"), np.ones(1, np.float32))
        error = gguf_weights.relative_error(found[plan_of.spec.name] * own, expected)
        if has_scale:
            assert (error, plan_of.exact) == (0, True)
        else:
            assert 0 < error <= 2.0**-11
            assert plan_of.exact is False
            assert "rounded to fp16" in plan_of.reason
    assert any(tensor.endswith(".scale") for tensor in found) == (name == "I2_S")  # one scale for the whole tensor
    assert verify(source, result.out, token_ids=no_token_ids).problems == []


def bitnet_cpp_file(folder: Path, architecture: str, *, kind: str = "I2_S") -> Path:
    """Write 2B-4T's little sister as bitnet.cpp's converter does: keys of one prefix, no pre-tokenizer."""
    sound = bitnet_model.write_gguf(folder / "f32.gguf", "f32", architecture=architecture, prefixes=(architecture,))
    stored = {}
    for (_, name), rows in bitnet_model.linears().items():
        stored[name] = files.KINDS[kind].tensor(rows.codes, rows.scales[:, :1])
    keyless = gguf.GGUFReader(sound)
    others = gguf.GGUFWriter(folder / "others.gguf", architecture)
    others.add_bool("unused", True)
    for tensor in keyless.tensors:
        if tensor.name not in stored:
            others.add_tensor(tensor.name, np.array(tensor.data))
    bitnet_model.add_numbers(
        others, architecture, bitnet_model.HIDDEN, bitnet_model.FFN, bitnet_model.LAYERS, bitnet_model.HEADS,
        bitnet_model.KV_HEADS, bitnet_model.CONTEXT,
    )  # fmt: skip
    bitnet_model._add_vocabulary(others)
    others.write_header_to_file()
    others.write_kv_data_to_file()
    others.write_tensors_to_file()
    others.close()
    return files.add_tensors(
        folder / "others.gguf", folder / "bitnet_cpp.gguf", stored, without=["tokenizer.ggml.pre", "unused"]
    )


@pytest.mark.parametrize("architecture", ["bitnet-b1.58", "bitnet-25"])
def test_bitnet_cpp_s_2b_4t_runs_as_the_file_of_its_own_weights(architecture: str, tmp_path: Path) -> None:
    source = bitnet_cpp_file(tmp_path, architecture)
    result = convert(source, tmp_path / "out.gguf")
    assert result.strings_checked == 0
    notes = " ".join(result.plan.notes)
    assert "tokenizer.ggml.pre is missing: added as llama-bpe" in notes
    assert "in blocks of 128" in notes
    assert f"hyperparameters of {architecture} are written as bitnet-b1.58 and bitnet" in notes
    fields = gguf.GGUFReader(result.out).fields
    sound = gguf.GGUFReader(bitnet_model.write_gguf(tmp_path / "sound.gguf", "f16")).fields
    assert fields["general.architecture"].contents() == "bitnet-b1.58"
    for key in sound:
        if not key.startswith("GGUF."):
            assert fields[key].contents() == sound[key].contents(), key
    assert not any(key.startswith("bitnet-25") for key in fields)
    found = []
    for path in (result.out, tmp_path / "sound.gguf"):
        with tritgguf.runtime.open(path, n_ctx=64) as session:
            found.append(session.logits(bitnet_model.token_ids()[:64]))
    assert relative_error(found[0], found[1]) < LOGITS_ERROR
    assert verify(source, result.out, token_ids=no_token_ids).problems == []


def test_a_converted_2b_4t_needs_no_repair(tmp_path: Path) -> None:
    sound = bitnet_model.write_gguf(tmp_path / "sound.gguf", "tq2_0")
    result = convert(sound, tmp_path / "out.gguf", type="tq1_0")
    assert result.strings_checked > 50
    assert not any("hyperparameters" in note or "missing" in note for note in result.plan.notes)


def test_a_bitnet_embedding_model_is_refused(tmp_path: Path) -> None:
    base = files.base_file(tmp_path / "base.gguf", "qwen3")
    kind = files.KINDS["I2_S"]
    tensors = {
        "blk.0.attn_q.weight": kind.tensor(*files.coded(kind, (256, 256), 0)),
        "blk.0.attn_q_norm_in.weight": ((256,), 0, bytes(1024)),
    }
    source = files.add_tensors(base, tmp_path / "in.gguf", tensors)
    with pytest.raises(UnsupportedError, match=r"in\.gguf has blk\.0\.attn_q_norm_in\.weight: .* no graph"):
        plan(source)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Q2_0-g128", ("type 42", "34 bytes per 128", "Prism", "PrismML-Eng/llama.cpp")),
        ("STQ1_0", ("42 or 43", "42 bytes per 256", "Tencent", "ggml-org/llama.cpp#22836")),
        ("I2_S", ("type 36", "bitnet.cpp", "ik_llama.cpp")),
    ],
)
def test_inspect_names_the_layout_and_the_programs(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    source, _ = foreign_file(tmp_path, name)
    found = inspect(source)
    assert found.refused is None
    assert found.dtypes[name] == 9
    (note,) = [note for note in found.notes if "tensors such as" in note]
    assert all(word in note for word in words), note
    (linear,) = [tensor for tensor in found.tensors if tensor.name == "blk.0.attn_q.weight"]
    assert linear.grid is not None
    assert set(EXACT[name]) <= set(linear.exact_types)


def test_inspect_names_llama_cpp_s_own_layout_of_type_42(tmp_path: Path) -> None:
    source, _ = foreign_file(tmp_path, "Q2_0-g128")
    out = convert(source, tmp_path / "out.gguf", target="cuda", check=False).out
    assert any("9 tensors are Q2_0 (type 42), 18 bytes per 64 values" in note for note in inspect(out).notes)


def test_verify_of_a_foreign_file_says_to_convert_it(tmp_path: Path) -> None:
    source, _ = foreign_file(tmp_path, "Q2_0-g128")
    with pytest.raises(UnsupportedError, match=r"convert it first: tritgguf convert foreign\.gguf OUT\.gguf"):
        verify(source, source)


def test_experts_and_the_number_of_the_mix(tmp_path: Path) -> None:
    """Three dimensions, beside a larger linear layer of floats; 141 is another program's number of a mix."""
    kind = files.KINDS["PQ2_0"]
    codes, scales = files.coded(kind, (6, 256), 0)
    floats = np.random.default_rng(4).standard_normal((64, 256)).astype(np.float16)
    tensors = {
        "blk.0.ffn_up_exps.weight": ((3, 2, 256), *kind.tensor(codes, scales)[1:]),
        "blk.0.ffn_up.weight": (floats.shape, 1, floats.tobytes()),
    }
    base = files.base_file(tmp_path / "base.gguf")
    source = files.add_tensors(base, tmp_path / "in.gguf", tensors, keys={"general.file_type": 141})
    out = convert(source, tmp_path / "out.gguf", check=False).out
    found = dequantized(out)
    np.testing.assert_array_equal(found["blk.0.ffn_up_exps.weight"], files.weights(codes, scales).reshape(3, 2, 256))
    np.testing.assert_array_equal(found["blk.0.ffn_up.weight"], floats)
    assert gguf.GGUFReader(out).fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16

"""verify(): what was converted passes, and each way of being wrong is found by its own reason."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType

from tests import checkpoints, packed_checkpoints, tokenizer_folders
from tests.checkpoint_recipes import RECIPES
from tests.gguf_edit import patch, rewrite
from tests.oracles import libggml
from tritgguf.converter import convert
from tritgguf.converter.core.tensors import Floats
from tritgguf.converter.errors import SourceError, TensorError
from tritgguf.converter.gguf_io.metadata import Value, boolean, float32, uint32
from tritgguf.converter.verification.metadata_check import compare_metadata
from tritgguf.converter.verification.tensor_check import type_bound
from tritgguf.converter.verification.verification import Verification, require_good, verify

Folder = Callable[[str], Path]
Q, GATE, UP, NORM = (f"blk.1.{part}.weight" for part in ("attn_q", "ffn_gate", "ffn_up", "attn_norm"))


@pytest.fixture(scope="module")
def ordinary(model: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama-gqa, ordinary floats, as F16."""
    return convert(model("llama-gqa"), tmp_path_factory.mktemp("f16") / "f16.gguf", "f16", check=False).out


def verdicts(found: Verification) -> dict[str, str]:
    return {check.name: check.verdict for check in found.tensors}


def bad(found: Verification) -> dict[str, str]:
    """The tensors that aren't as they should be, with their reasons."""
    return {check.name: check.reason for check in found.tensors if not check.good}


# --- what is right passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("llama1", "tq2_0"),
        ("llama-tied", "tq1_0"),
        ("llama-llama3", "auto"),
        ("qwen3-tied", "q2_k"),
        ("qwen2-yarn", "q4_0"),
        ("llama-shards-of-rows", "q2_0"),
        ("2b4t", "auto"),
        ("2b4t-scalar", "tq2_0"),  # a float32 .scale tensor stands beside each
        ("1bitllm", "tq2_0"),
        ("bonsai", "q2_0"),
        ("bitcpm", "q4_0"),
    ],
)
def test_a_ternary_model_is_exact(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(
        model(name), tmp_path / "out.gguf", type_name, embedding_type="f32", output_type="f32", check=False
    ).out
    found = verify(model(name), out)
    assert found.problems == []
    assert found.other_keys == ()
    assert set(verdicts(found).values()) == {"exact"}
    assert found.strings_checked > 100
    assert all(check.relative_error == check.max_error == 0 for check in found.tensors)
    require_good(found.problems, out)


@pytest.mark.parametrize("name", ["falcon3", "llama-rows", "14b-seed"])
def test_a_scale_that_fp16_rounds_is_told(name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", "q2_0", check=False).out
    found = verify(model(name), out)
    assert found.problems == []
    rounded = [check for check in found.tensors if check.verdict == "rounded"]
    assert all("fp16" in check.reason or "F16" in check.reason for check in rounded)
    assert all(0 < (check.relative_error or 0) < 5e-4 for check in rounded)
    if name != "falcon3":  # whose scales are float32 tensors
        assert {check.name for check in rounded} > {Q, GATE, UP}


@pytest.mark.parametrize(
    ("type_name", "method", "reason"),
    [
        ("tq2_0", "mse", "quantized by mse"),
        ("tq1_0", "absmean", "quantized by absmean"),
        ("q2_k", "mse", "quantized by mse"),
        ("q8_0", "mse", "quantized by q8_0"),
        ("q6_k", "mse", "quantized by q6_k"),
        ("f16", "mse", "rounded to F16"),
    ],
)
def test_what_a_type_loses_is_explained(
    type_name: str, method: str, reason: str, model: Folder, tmp_path: Path
) -> None:
    name = "llama-biases" if type_name == "f16" else "llama-gqa"  # float32 values, so that F16 rounds
    found = verify(model(name), convert(model(name), tmp_path / "out.gguf", type_name, method, check=False).out)
    assert found.problems == []
    linear = [check for check in found.tensors if check.name in (Q, GATE, UP)]
    assert {check.reason for check in linear} == {reason}
    for check in linear:
        assert check.relative_error is not None
        bound = 2.0**-11 if type_name == "f16" else type_bound(GGMLQuantizationType[check.type])
        assert 0 < check.relative_error < bound


def test_a_gguf_source(ordinary: Path, tmp_path: Path) -> None:
    out = convert(ordinary, tmp_path / "out.gguf", "tq2_0", check=False).out
    found = verify(ordinary, out)
    assert found.problems == []
    assert verdicts(found)["token_embd.weight"] == "exact"
    assert {check.reason for check in found.tensors if check.name in (Q, GATE)} == {"quantized by mse"}


# --- damaged tensors -----------------------------------------------------------------------------------------------


def flip(row: int, place: int) -> Callable[[np.ndarray], None]:
    def change(rows: np.ndarray) -> None:
        rows[row, place] ^= 0x10

    return change


@pytest.mark.parametrize(
    ("name", "type_name", "tensor", "row", "reason"),
    [
        ("llama1", "tq2_0", Q, 77, "1 of 256 rows differ, the first is row 77, though TQ2_0 can hold"),
        ("llama1", "f16", GATE, 500, "1 of 512 rows differ, the first is row 500"),
        ("llama-gqa", "tq2_0", Q, 5, "1 of 256 rows differ from the source quantized by mse"),
        ("llama-gqa", "q8_0", UP, 5, "1 of 512 rows differ from the source quantized by q8_0"),
        ("llama-gqa", "f16", "token_embd.weight", 319, "1 of 320 rows differ, the first is row 319"),
        ("llama-gqa", "f16", NORM, 0, "its values differ, though F32 can hold"),
        ("2b4t-scalar", "tq2_0", Q, 3, "1 of 256 rows differ, the first is row 3"),
    ],
)
def test_one_changed_byte(
    name: str, type_name: str, tensor: str, row: int, reason: str, model: Folder, tmp_path: Path
) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out
    found = bad(verify(model(name), patch(out, tensor, flip(row, 6))))
    assert list(found) == [tensor]
    assert reason in found[tensor]


@pytest.mark.parametrize(
    ("name", "type_name"), [("llama1", "tq2_0"), ("llama-gqa", "tq2_0"), ("llama-gqa", "q8_0"), ("llama-gqa", "f16")]
)
def test_two_tensors_swapped(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    swapped = rewrite(out, tmp_path / "swapped.gguf", tensors={GATE: stored[UP], UP: stored[GATE]})
    assert bad(verify(model(name), swapped)) == {
        GATE: "it holds the values of model.layers.1.mlp.up_proj.weight",
        UP: "it holds the values of model.layers.1.mlp.gate_proj.weight",
    }


def inverted_fp16(start: int) -> Callable[[np.ndarray], None]:
    """Invert the fp16 scale of every block of 66 bytes."""

    def change(rows: np.ndarray) -> None:
        blocks = rows.reshape(len(rows), -1, 66)
        scales = np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")
        blocks[..., start : start + 2] = np.where(scales == 0, scales, 1 / scales).astype("<f2").view(np.uint8)

    return change


def test_an_inverted_scale_in_the_file(model: Folder, tmp_path: Path) -> None:
    with np.errstate(divide="ignore"):
        out = patch(convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out, UP, inverted_fp16(64))
    assert bad(verify(model("llama1"), out)) == {UP: "its scale is inverted: each value is 1 / the expected one"}


def test_an_inverted_scale_tensor(model: Folder, tmp_path: Path) -> None:
    out = convert(model("2b4t-scalar"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def invert(rows: np.ndarray) -> None:
        rows.view("<f4")[:] = 1 / rows.view("<f4")

    found = verify(model("2b4t-scalar"), patch(out, UP.replace("weight", "scale"), invert))
    assert bad(found) == {UP: "its scale is inverted: each value is 1 / the expected one"}


def test_a_file_made_with_the_scale_the_wrong_way(model: Folder, tmp_path: Path) -> None:
    """As llama.cpp's own converter does with autobitlinear checkpoints."""
    wrong = packed_checkpoints.build("2b4t", tmp_path / "wrong")
    config = packed_checkpoints.read_config(wrong)
    config["quantization_config"]["linear_class"] = "bitlinear"
    packed_checkpoints.write_config(wrong, config)
    found = bad(verify(model("2b4t"), convert(wrong, tmp_path / "out.gguf", "tq2_0", check=False).out))
    assert len(found) == 14
    assert set(found.values()) == {"its scale is inverted: each value is 1 / the expected one"}


def test_a_scale_twice_too_large(model: Folder, tmp_path: Path) -> None:
    out = convert(model("2b4t-scalar"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def double(rows: np.ndarray) -> None:
        rows.view("<f4")[:] *= 2

    found = verify(model("2b4t-scalar"), patch(out, UP.replace("weight", "scale"), double))
    assert bad(found) == {UP: "its scale is wrong: the values are 2 times the source's"}


def test_latent_weights_rounded_a_second_time(model: Folder, tmp_path: Path) -> None:
    """Absmean on weights that are ternary already multiplies them by their density."""
    out = convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out

    def shrink(rows: np.ndarray) -> None:
        scales = rows.reshape(len(rows), -1, 66)[..., 64:]
        scales[:] = (np.ascontiguousarray(scales).view("<f2") * np.float16(0.69)).view(np.uint8)

    assert "its scale is wrong: the values are 0.6" in bad(verify(model("llama1"), patch(out, Q, shrink)))[Q]


def unpermuted(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k with rotary partners apart again, as a checkpoint has them."""
    return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize(("name", "type_name"), [("llama1", "tq1_0"), ("llama-gqa", "tq2_0"), ("llama-gqa", "f16")])
def test_q_in_the_checkpoint_s_row_order(name: str, type_name: str, model: Folder, tmp_path: Path) -> None:
    out = convert(model(name), tmp_path / "out.gguf", type_name, check=False).out

    def unpermute(rows: np.ndarray) -> None:
        rows[:] = unpermuted(rows.copy(), 4)

    assert bad(verify(model(name), patch(out, Q, unpermute))) == {
        Q: "its rows are in the checkpoint's order, but the graph needs another order"
    }


def test_q_permuted_for_a_graph_that_needs_no_order(model: Folder, tmp_path: Path) -> None:
    out = convert(model("qwen2"), tmp_path / "out.gguf", "f16", check=False).out

    def permute(rows: np.ndarray) -> None:
        rows[:] = rows.reshape(4, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).copy()

    assert bad(verify(model("qwen2"), patch(out, Q, permute))) == {Q: "its rows are the source's in another order"}


def test_tensors_missing_surplus_and_misshapen(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    extra = (np.zeros(4, np.float32), GGMLQuantizationType.F32)
    half = (np.zeros((256, 128), np.float32), GGMLQuantizationType.F32)
    scale = (np.ones(1, np.float32), GGMLQuantizationType.F32)
    changes = {UP: None, "surplus.weight": extra, Q: half, "token_embd.scale": scale}
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", tensors=changes))
    assert bad(found) == {
        Q: "its shape is (256, 128); expected (256, 256)",
        UP: "the file doesn't have this tensor",
        "surplus.weight": "the model has no such tensor",
        "token_embd.scale": "the graph doesn't use this scale",
    }
    assert verdicts(found)[UP] == "missing"
    assert verdicts(found)["surplus.weight"] == "extra"
    with pytest.raises(TensorError, match=r"^out\.gguf differs from the model: .* \(and 3 more\)") as caught:
        require_good(found.problems, tmp_path / "out.gguf")
    assert "\n" not in str(caught.value)


def test_a_tensor_with_nan(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    values = np.full(256, np.nan, np.float32)
    out = rewrite(ordinary, tmp_path / "out.gguf", tensors={NORM: (values, GGMLQuantizationType.F32)})
    found = verify(model("llama-gqa"), out)
    assert verdicts(found)[NORM] == "unreadable"
    assert "256 NaN or Inf values" in bad(found)[NORM]


# --- files of other converters -------------------------------------------------------------------------------------


def foreign(path: Path, out: Path, type_name: str, seed: float = 0.0) -> Path:
    """The F16 file as another program would make it: linear layers quantized by ggml, other keys."""
    kind = GGMLQuantizationType[type_name]
    changes = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name.startswith("blk.") and tensor.tensor_type == GGMLQuantizationType.F16:
            changes[tensor.name] = (libggml.quantize(np.array(tensor.data, np.float32), kind), kind)
    keys = {"general.name": "Other", "general.license": "mit", "tokenizer.ggml.add_space_prefix": False}
    keys |= dict.fromkeys(("llama.attention.key_length", "llama.attention.value_length", "llama.vocab_size"))
    return rewrite(path, out, keys=keys, tensors=changes)


@pytest.mark.parametrize(
    ("type_name", "reason"),
    [
        ("Q4_0", "quantized by ggml"),
        ("Q5_1", "quantized by ggml"),
        ("Q8_0", "quantized by q8_0"),
        ("TQ2_0", "quantized by ggml"),
        ("Q3_K", "the error is in the range of Q3_K"),
        ("Q4_K", "the error is in the range of Q4_K"),
        ("Q6_K", "the error is in the range of Q6_K"),
        ("IQ4_NL", "the error is in the range of IQ4_NL"),
    ],
)
def test_another_converter_s_file_passes(
    type_name: str, reason: str, model: Folder, ordinary: Path, tmp_path: Path
) -> None:
    found = verify(model("llama-gqa"), foreign(ordinary, tmp_path / "out.gguf", type_name))
    assert found.problems == []
    assert {check.reason for check in found.tensors if check.type == type_name} == {reason}
    told = " ".join(found.other_keys)
    assert "general.name is 'Other'" in told
    assert "llama.attention.key_length is missing; llama.cpp's default is 64, as expected" in told
    assert "llama.vocab_size is missing; llama.cpp's default is 320" in told


@pytest.mark.parametrize("type_name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K"])
def test_wrong_tensors_of_another_converter(type_name: str, model: Folder, ordinary: Path, tmp_path: Path) -> None:
    out = foreign(ordinary, tmp_path / "first.gguf", type_name)
    stored = {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in gguf.GGUFReader(out).tensors}
    changes = {
        Q: (unpermuted(stored[Q][0], 4), stored[Q][1]),
        GATE: stored[UP],
        "blk.0.attn_output.weight": (np.roll(stored["blk.0.attn_output.weight"][0], 1, axis=0), stored[UP][1]),
    }
    found = bad(verify(model("llama-gqa"), rewrite(out, tmp_path / "out.gguf", tensors=changes)))
    assert found.keys() == changes.keys()
    assert found[Q] == "its rows are in the checkpoint's order, but the graph needs another order"
    assert found[GATE] == "it holds the values of model.layers.1.mlp.up_proj.weight"
    assert f"the error is too large for {type_name}" in found["blk.0.attn_output.weight"]


def test_a_tied_output_that_is_written_twice(model: Folder, tmp_path: Path) -> None:
    out = convert(model("llama-tied"), tmp_path / "first.gguf", "tq2_0", check=False).out
    embedding = next(t for t in gguf.GGUFReader(out).tensors if t.name == "token_embd.weight")
    twice = {"output.weight": (np.array(embedding.data), embedding.tensor_type)}
    assert verify(model("llama-tied"), rewrite(out, tmp_path / "twice.gguf", tensors=twice)).problems == []
    other = {"output.weight": (np.array(embedding.data)[::-1], embedding.tensor_type)}
    found = bad(verify(model("llama-tied"), rewrite(out, tmp_path / "other.gguf", tensors=other)))
    assert list(found) == ["output.weight"]


def test_one_tensor_of_another_fine_tune_among_ours(model: Folder, tmp_path: Path) -> None:
    """Ternary rounding loses half of a tensor, which hides much: not that one tensor alone isn't ours."""
    out = convert(model("llama-gqa"), tmp_path / "first.gguf", "tq2_0", check=False).out
    source = checkpoints.weights("llama-gqa")["model.layers.1.mlp.up_proj.weight"]
    noise = np.random.default_rng(5).standard_normal(source.shape, dtype=np.float32) * source.std() * np.float32(0.3)
    other = convert_rows(source + noise)
    found = bad(verify(model("llama-gqa"), rewrite(out, tmp_path / "out.gguf", tensors={UP: other})))
    assert found == {UP: "it isn't the source quantized by mse, but the other tensors are"}


def convert_rows(values: np.ndarray) -> tuple[np.ndarray, GGMLQuantizationType]:
    from tritgguf.converter.quant.codecs.tq2_0 import CODEC
    from tritgguf.converter.quant.methods.mse import METHOD

    return CODEC.pack(METHOD.quantize(Floats.of(values), 256)), GGMLQuantizationType.TQ2_0


# --- metadata and token ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("llama.rope.freq_base", 500000.0, "llama.rope.freq_base is 500000.0; expected 10000.0"),
        ("llama.attention.layer_norm_rms_epsilon", 1e-5, "epsilon is 9.99.*e-06; expected 0.05"),
        ("llama.attention.head_count_kv", None, "head_count_kv is missing; expected 2"),
        ("llama.rope.scaling.factor", 2.0, r"scaling\.factor is 2\.0; the model doesn't need this key"),
        ("tokenizer.ggml.eos_token_id", 7, "eos_token_id is 7; expected"),
        ("tokenizer.ggml.pre", "qwen2", "tokenizer.ggml.pre is 'qwen2'; expected 'llama-bpe'"),
        ("tokenizer.ggml.add_bos_token", None, "add_bos_token is missing; expected True"),
    ],
)
def test_a_key_that_matters(
    key: str, value: object, expected: str, model: Folder, ordinary: Path, tmp_path: Path
) -> None:
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", keys={key: value}))
    assert not bad(found)
    assert len(found.wrong_keys) == 1
    with pytest.raises(TensorError, match=expected):
        require_good(found.problems, tmp_path / "out.gguf")


def test_numbers_are_equal_by_value_whatever_their_type() -> None:
    expected = {"x.a": uint32(3), "x.b": float32(0.1), "x.c": float32(2.0), "x.d": boolean(True)}
    same = {"x.a": Value(3, GGUFValueType.INT64), "x.b": Value(0.1, GGUFValueType.FLOAT64), "x.c": uint32(2)}
    assert compare_metadata(expected, {**same, "x.d": boolean(True)}) == ((), ())
    wrong, _ = compare_metadata(expected, {**same, "x.b": Value(1e300, GGUFValueType.FLOAT64), "x.d": uint32(1)})
    assert wrong == ("x.b is 1e+300; expected 0.1", "x.d is 1; expected True")


def test_a_wrong_pre_tokenizer_gives_other_ids(tmp_path: Path, monkeypatch) -> None:
    """The tiny tokenizers have too few merges to tell; this one's run across what pre-tokenizers keep apart."""
    structure = tokenizer_folders.byte_level_structure()
    n_vocab = len(structure["model"]["vocab"]) + len(structure["added_tokens"])
    monkeypatch.setitem(RECIPES, "many-tokens", replace(RECIPES["llama1"], vocab=n_vocab))
    source = checkpoints.build("many-tokens", tmp_path / "model")
    config = packed_checkpoints.read_config(source) | tokenizer_folders.CONFIG
    packed_checkpoints.write_config(source, config)
    tokenizer_folders.write_json(source / "tokenizer.json", structure)
    (source / "tokenizer_config.json").unlink()
    right = convert(source, tmp_path / "right.gguf", "tq2_0", check=False).out
    assert verify(source, right).problems == []
    found = verify(source, rewrite(right, tmp_path / "wrong.gguf", keys={"tokenizer.ggml.pre": "deepseek-llm"}))
    assert found.wrong_keys == ("tokenizer.ggml.pre is 'deepseek-llm'; expected 'gpt-2'",)
    assert found.token_ids is not None
    assert "becomes other token ids than in the source tokenizer" in found.token_ids
    assert "--no-check" not in found.token_ids
    assert found.strings_checked == 0


def test_one_token_changed(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    tokens = gguf.GGUFReader(ordinary).fields["tokenizer.ggml.tokens"].contents()
    tokens[40], tokens[41] = tokens[41], tokens[40]
    found = verify(model("llama-gqa"), rewrite(ordinary, tmp_path / "out.gguf", keys={"tokenizer.ggml.tokens": tokens}))
    assert len(found.wrong_keys) == 1
    assert f"tokenizer.ggml.tokens is {tokens[40]!r} at index 40; expected {tokens[41]!r} at index 40" in found.problems
    assert found.token_ids is not None


def test_two_models_that_do_not_belong_together(model: Folder, ordinary: Path) -> None:
    found = verify(model("llama-linear"), ordinary)
    assert any("rope" in key for key in found.wrong_keys)
    assert len(bad(found)) > 10


# --- errors --------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model("llama-gqa") / "config.json").read_text())
    with pytest.raises(SourceError, match=r"holds no weights .* nothing to compare with"):
        verify(tmp_path, ordinary)


def test_a_truncated_file(model: Folder, ordinary: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(ordinary.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"cut\.gguf: is truncated"):
        verify(model("llama-gqa"), cut)


def test_progress_and_json(model: Folder, ordinary: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    found = verify(model("llama-gqa"), ordinary, progress=lambda *step: steps.append(step))
    assert steps[-1][0] == "comparing"
    assert steps[-1][1] == steps[-1][2] == sum(t.n_bytes for t in gguf.GGUFReader(ordinary).tensors)
    assert json.loads(json.dumps(found.as_json()))["good"] is True


def test_bounds_grow_with_fewer_bits_and_never_reach_an_unrelated_tensor() -> None:
    """Measured on Gaussian and on heavy-tailed rows, ggml's own quantizers stay below them."""
    rng = np.random.default_rng(9)
    for rows in (rng.standard_normal((64, 1024)), rng.standard_t(4, (64, 1024))):
        values = rows.astype(np.float32)
        for name in ("Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "Q4_1", "IQ4_XS", "Q3_K", "Q2_K"):
            kind = GGMLQuantizationType[name]
            error = libggml.dequantize(libggml.quantize(values, kind), kind) - values
            assert np.linalg.norm(error) / np.linalg.norm(values) < type_bound(kind) <= 0.95, name

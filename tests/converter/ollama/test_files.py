"""Files for Ollama: bit-identical weights in types that it loads; llama.cpp's own build copies and runs them."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

import tritgguf.runtime
from tests import checkpoints
from tests.chat_templates import CASES
from tests.gguf_edit import rewrite
from tests.oracles import libggml
from tritgguf.converter import TensorError, UnsupportedError, convert
from tritgguf.converter.core.tensors import CodedRows
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.ollama.repack import guarded, repack, repack_plan
from tritgguf.converter.ollama.versions import verdicts
from tritgguf.converter.quant.codec import TernaryCodec, codec_named
from tritgguf.runtime.chat.chat_template import ChatTemplate

TAKEN = {"Q2_K", "Q4_0", "F16", "F32"}


def values(file: GgufFile, name: str) -> np.ndarray:
    """Dequantize with ggml, not with this project's own decoder."""
    tensor = file.tensors[name]
    stored = tensor.data.reshape(tensor.shape[0], -1)
    if tensor.dtype in ("F32", "F16"):
        return np.ascontiguousarray(stored).view({"F32": "<f4", "F16": "<f2"}[tensor.dtype]).astype(np.float32)
    return libggml.dequantize(stored, tensor.ggml_type)


def assert_same_model(before: GgufFile, after: GgufFile) -> None:
    """Require bit-identical values, except for the sign of zero, and the same keys that describe the model."""
    assert list(before.tensors) == list(after.tensors)
    for name in before.tensors:
        np.testing.assert_array_equal(values(before, name), values(after, name), err_msg=name)
    rewritten = {"general.file_type", "general.quantization_version", "general.alignment"}
    for key in before.metadata.keys() - rewritten:
        assert before.metadata[key] == after.metadata[key], key


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("llama-tied", "tq1_0"), ("llama-tied", "q2_0"), ("qwen3-tied", "tq2_0"), ("llama-shards-of-rows", "tq2_0")],
)
def test_a_repacked_file_is_the_same_model(recipe: str, kind: str, model, tmp_path: Path) -> None:
    source = convert(model(recipe), tmp_path / "a.gguf", kind, check=False).out
    result = repack(source, tmp_path / "b.gguf")
    after = read_gguf(result.out)
    assert all(tensor.exact for tensor in result.plan.tensors)
    assert {tensor.dtype for tensor in after.tensors.values()} <= TAKEN
    assert_same_model(read_gguf(source), after)
    assert after.value("general.file_type") == 10
    assert verdicts(after)[-1].loads is True
    assert result.plan.file_bytes == result.out.stat().st_size


def test_groups_of_64_become_exact_q4_0(model, tmp_path: Path) -> None:
    folder = model("14b-seed")
    source = convert(folder, tmp_path / "a.gguf", "q2_0", check=False).out
    after = read_gguf(repack(source, tmp_path / "b.gguf").out)
    assert_same_model(read_gguf(source), after)
    kinds = [tensor.dtype for name, tensor in after.tensors.items() if "attn_q.weight" in name or "ffn" in name]
    assert "Q4_0" in kinds
    assert after.value("general.file_type") == 2
    straight = read_gguf(convert(folder, tmp_path / "c.gguf", target="ollama", check=False).out)
    assert {name: tensor.dtype for name, tensor in straight.tensors.items()} == {
        name: tensor.dtype for name, tensor in after.tensors.items()
    }


@pytest.mark.parametrize("embedding", ["f16", "q8_0", "q6_k"])
def test_the_chosen_embedding_type(embedding: str, model, tmp_path: Path) -> None:
    folder = model("llama-tied")
    file = read_gguf(convert(folder, tmp_path / "a.gguf", target="ollama", embedding_type=embedding, check=False).out)
    assert file.tensors["token_embd.weight"].dtype == embedding.upper()
    assert file.value("general.file_type") == 10
    assert verdicts(file)[-1].loads is True


def test_ternary_embeddings_become_exact_q2_k(model, tmp_path: Path) -> None:
    """Some models have ternary embeddings, which a TQ2_0 file stores in a type that Ollama refuses."""
    source = convert(model("llama-tied"), tmp_path / "a.gguf", "tq2_0", check=False).out
    shape = read_gguf(source).tensors["token_embd.weight"].shape
    codec = codec_named("tq2_0")
    assert isinstance(codec, TernaryCodec)
    rng = np.random.default_rng(11)
    scales = rng.uniform(0.01, 1, (shape[0], shape[1] // 256)).astype(np.float16).astype(np.float32)
    packed = codec.pack(CodedRows(rng.integers(-1, 2, shape).astype(np.int8), scales, 256))
    other = {"token_embd.weight": (packed, GGMLQuantizationType.TQ2_0)}
    ternary = rewrite(source, tmp_path / "b.gguf", tensors=other)
    after = read_gguf(repack(ternary, tmp_path / "c.gguf").out)
    assert after.tensors["token_embd.weight"].dtype == "Q2_K"
    assert_same_model(read_gguf(ternary), after)


def test_a_refused_tensor_that_is_no_linear_layer_is_an_error(model, tmp_path: Path) -> None:
    source = convert(model("llama-tied"), tmp_path / "a.gguf", "tq2_0", check=False).out
    odd = {"blk.0.router.weight": (np.zeros((2, 66), np.uint8), GGMLQuantizationType.TQ2_0)}
    bad = rewrite(source, tmp_path / "b.gguf", tensors=odd)
    with pytest.raises(TensorError, match=r"blk\.0\.router\.weight is TQ2_0, which ollama refuses"):
        repack(bad, tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()


# --- chosen types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"type": "tq2_0"}, "--type tq2_0 contradicts --for ollama: .* leave --type out, q2_k holds the same values"),
        ({"type": "tq1_0"}, "--type tq1_0 contradicts --for ollama"),
        ({"type": "q2_0"}, "--type q2_0 contradicts --for ollama: .* q2_k or q4_0 hold them exactly"),
        ({"embedding_type": "tq2_0"}, "--embedding-type tq2_0 contradicts --for ollama"),
        ({"output_type": "q2_0"}, "--output-type q2_0 contradicts --for ollama"),
    ],
)
def test_a_refused_type_cannot_be_chosen(choices: dict[str, str], message: str, model, tmp_path: Path) -> None:
    folder = model("llama-tied")
    with pytest.raises(UnsupportedError, match=message):
        convert(folder, tmp_path / "out.gguf", target="ollama", **choices)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["q2_k", "q4_0", "f16"])
def test_other_types_can_be_chosen(kind: str, model, tmp_path: Path) -> None:
    folder = model("llama-tied")
    file = read_gguf(convert(folder, tmp_path / "out.gguf", kind, target="ollama", check=False).out)
    assert file.tensors["blk.0.attn_q.weight"].dtype == kind.upper()


@pytest.mark.parametrize("recipe", ["falcon3", "llama-online"])
def test_scales_in_tensors_of_their_own_can_t_be_multiplied_in(recipe: str, model, tmp_path: Path) -> None:
    """Q2_K holds an fp16 number times 1 to 15: no such product is the scale. So the verdict on old versions is no."""
    file = read_gguf(convert(model(recipe), tmp_path / "out.gguf", target="ollama", check=False).out)
    scales = [values(file, name).item() for name in file.tensors if name.endswith(".scale")]
    assert scales
    steps = np.arange(1, 16, dtype=np.float64)
    for scale in scales:
        assert (np.float16(scale / steps).astype(np.float64) * steps != scale).all(), scale
    assert [verdict.loads for verdict in verdicts(file)] == [False, False, True, True]


def test_bitnet_2b_4t_is_refused(model, tmp_path: Path) -> None:
    folder = model("2b4t")
    with pytest.raises(UnsupportedError, match="runs in tritgguf's own runtime alone"):
        convert(folder, tmp_path / "out.gguf", target="ollama", check=False)
    source = convert(folder, tmp_path / "own.gguf", "tq2_0", check=False).out
    with pytest.raises(UnsupportedError, match="runs in tritgguf's own runtime alone"):
        repack_plan(source)


# --- the runtime -----------------------------------------------------------------------------------------------------


def test_logits_are_those_of_the_tq2_0_file(model, tmp_path: Path) -> None:
    """The weights are equal, but kernels round activations differently: Q4_0's in blocks of 32 instead of 256."""
    folder = model("llama-tied")
    ids = checkpoints.token_ids("llama-tied")
    logits = {}
    for kind in ("tq2_0", "f16"):
        file = convert(folder, tmp_path / f"{kind}.gguf", kind, check=False).out
        logits[kind] = _logits(file, ids)
    logits["q2_k"] = _logits(repack(tmp_path / "tq2_0.gguf", tmp_path / "q2_k.gguf").out, ids)
    logits["q4_0"] = _logits(convert(folder, tmp_path / "q4_0.gguf", "q4_0", check=False).out, ids)
    size = np.linalg.norm(logits["f16"])
    errors = {kind: np.linalg.norm(found - logits["tq2_0"]) / size for kind, found in logits.items()}
    assert errors["q2_k"] < 0.02, errors
    assert errors["q4_0"] < 0.05, errors
    from_floats = {kind: np.linalg.norm(found - logits["f16"]) / size for kind, found in logits.items()}
    assert max(from_floats.values()) < 0.035, from_floats
    assert (logits["q2_k"].argmax(axis=1) == logits["tq2_0"].argmax(axis=1)).mean() > 0.95


def _logits(file: Path, ids: list[int]) -> np.ndarray:
    with tritgguf.runtime.open(file, n_ctx=len(ids)) as session:
        return session.logits(ids)


@pytest.mark.parametrize(("recipe", "file_type"), [("llama-tied", 10), ("llama-hidden-192", 2), ("qwen3-tied", 10)])
def test_llama_cpp_copies_the_file_unchanged(recipe: str, file_type: int, model, tmp_path: Path) -> None:
    """On `create`, some versions of Ollama rewrite a file with llama.cpp's quantizer in copy mode."""
    from llama_cpp import llama_cpp as native

    folder = model(recipe)
    source = convert(folder, tmp_path / "a.gguf", target="ollama", check=False).out
    parameters = native.llama_model_quantize_default_params()
    parameters.only_copy, parameters.nthread = True, 1
    result = native.llama_model_quantize(
        str(source).encode(), str(tmp_path / "b.gguf").encode(), ctypes.byref(parameters)
    )
    assert result == 0
    before, after = read_gguf(source), read_gguf(tmp_path / "b.gguf")
    assert before.value("general.file_type") == after.value("general.file_type") == file_type
    for name, tensor in before.tensors.items():
        assert after.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(after.tensors[name].data, tensor.data, err_msg=name)


# --- what the checkpoint's card says ---------------------------------------------------------------------------------


def test_the_card_s_licence_and_sampling_go_into_the_file(tmp_path: Path) -> None:
    model = checkpoints.build("llama-tied", tmp_path / "model")
    card = '---\nlanguage: en\nlicense: other\nlicense_name: "my-licence"\n---\n# A model\nlicense: not this\n'
    (model / "README.md").write_text(card, encoding="utf-8")
    sampling = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "do_sample": True}
    (model / "generation_config.json").write_text(json.dumps(sampling), encoding="utf-8")
    reader = gguf.GGUFReader(convert(model, tmp_path / "out.gguf", "tq2_0", check=False).out)
    found = {name: field.contents() for name, field in reader.fields.items() if "sampling" in name or "licen" in name}
    assert found == {
        "general.license": "other",
        "general.license.name": "my-licence",
        "general.sampling.temp": pytest.approx(0.7),
        "general.sampling.top_p": pytest.approx(0.8),
        "general.sampling.top_k": 20,
        "general.sampling.penalty_repeat": pytest.approx(1.05),
    }
    assert reader.fields["general.sampling.top_k"].types == [gguf.GGUFValueType.INT32]


@pytest.mark.parametrize(
    "readme", [None, "# no front matter\nlicense: mit\n", "---\nlicense:\n---\n", "---\nlicense: {}\n---\n"]
)
def test_a_card_without_a_licence(readme: str, tmp_path: Path) -> None:
    model = checkpoints.build("llama-tied", tmp_path / "model")
    if readme:
        (model / "README.md").write_text(readme, encoding="utf-8")
    (model / "generation_config.json").write_text('{"temperature": null, "top_k": null}', encoding="utf-8")
    reader = gguf.GGUFReader(convert(model, tmp_path / "out.gguf", "tq2_0", check=False).out)
    assert not [name for name in reader.fields if "sampling" in name or "licen" in name]


# --- the guard -------------------------------------------------------------------------------------------------------


def distance(left: str, right: str) -> int:
    """Return the Levenshtein distance, by which Ollama picks a template."""
    row = np.arange(len(right) + 1)
    letters = np.array(list(right))
    for number, letter in enumerate(left, 1):
        best = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)
        # Insertions run along the row: the least of best[j] - j so far, plus j.
        steps = np.arange(len(right) + 1)
        row = np.minimum.accumulate(np.concatenate(([number], best)) - steps) + steps
    return int(row[-1])


def test_the_guard_is_far_from_every_template_and_changes_nothing() -> None:
    assert distance("kitten", "sitting") == 3
    templates = [case.jinja for case in CASES.values()]
    for jinja in templates[:6]:
        assert guarded(guarded(jinja)) == guarded(jinja)
        assert min(distance(guarded(jinja), other) for other in templates) >= 150
    for case in CASES.values():
        plain, own = (ChatTemplate(text, bos=case.bos, eos=case.eos) for text in (case.jinja, guarded(case.jinja)))
        messages = [{"role": "user", "content": "Hi"}]
        assert own.render(messages) == plain.render(messages)


@pytest.mark.parametrize("jinja", ["  {% if true %}a{% endif %}", "\n a{{ 1 }}", "{#- c #} x", " {{ 1 }}", "plain"])
def test_a_guarded_template_may_begin_with_anything(jinja: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert ChatTemplate(guarded(jinja)).render(messages) == ChatTemplate(jinja).render(messages)

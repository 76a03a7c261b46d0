"""Every source in every type that fits: the file's weights, as ggml dequantizes them, are those of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from tests import gguf_weights
from tests.packed_checkpoints import LONG, PACKED, Packed, weights
from tritgguf.converter import convert, plan
from tritgguf.converter.errors import TensorError
from tritgguf.converter.planning.targets import is_x86

BLOCKS = {"tq1_0": 256, "tq2_0": 256, "q2_0": 64, "q2_k": 256, "q4_0": 32}
FP16_ROUNDING = 2.0**-11
# Graphs that multiply by a tensor's `.scale`, which keeps one scale per tensor as float32.
SCALED_GRAPHS = ("LlamaForCausalLM", "BitnetForCausalLM", "BitNetForCausalLM", "Qwen3ForCausalLM")


def fits(packed: Packed, type_name: str) -> bool:
    """Whether blocks of the type lie within the groups and rows of the checkpoint."""
    block = BLOCKS[type_name]
    rows_fit = packed.base.hidden % block == 0 and packed.base.ffn % block == 0
    return rows_fit and (packed.group is None or packed.group % block == 0)


def tolerance(packed: Packed, type_name: str) -> float:
    """Return the relative error to allow: fp16's rounding of scales where nothing else keeps them, else none."""
    long_scales = packed.scale_bits == LONG or packed.packing == "latent" or packed.divides
    if not long_scales:
        return 0
    per_tensor = packed.group is None and packed.scale_shape != "row"
    kept = per_tensor and packed.base.architecture in SCALED_GRAPHS and type_name != "f16"
    return 0 if kept else FP16_ROUNDING


def cases() -> Iterator[tuple[str, str]]:
    for name, packed in PACKED.items():
        for type_name in ("auto", "f16"):
            yield name, type_name
        for type_name in BLOCKS:
            if fits(packed, type_name):
                yield name, type_name


@pytest.mark.parametrize(("name", "type_name"), list(cases()))
def test_the_file_holds_what_the_model_computes_with(name, type_name, packed, tmp_path: Path) -> None:
    kind = PACKED[name]
    planned = convert(packed(name), tmp_path / "out.gguf", type=type_name, check=False).plan
    found, expected = gguf_weights.read(tmp_path / "out.gguf", kind.sub_norms), weights(name)
    gguf_weights.assert_same(found, expected, tolerance(kind, type_name))
    # What the plan calls exact is so to the bit, and nothing else is.
    for tensor in planned.tensors:
        if tensor.spec.role != "scale":
            assert tensor.exact == (
                gguf_weights.relative_error(found[tensor.spec.source], expected[tensor.spec.source]) == 0
            )
    linear = {tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear"}
    assert linear == ({type_name} if type_name != "auto" else linear & BLOCKS.keys())


@pytest.mark.parametrize(
    ("name", "target", "type_name"),
    [
        ("2b4t", "cpu", "tq1_0"),
        ("falcon3", "cuda", "q2_0"),
        ("falcon3", "metal", "tq2_0"),
        ("falcon3", "ollama", "q2_k"),
        ("14b-seed", "cpu", "q4_0" if is_x86() else "q2_0"),
        ("14b-seed", "cuda", "q2_0"),
        ("14b-seed", "ollama", "q4_0"),
        ("14b-padded", "cuda", "q4_0"),
        ("bitcpm", "metal", "q2_0"),
        ("bonsai", "vulkan", "q2_0"),
    ],
)
def test_auto_takes_the_smallest_type_that_fits(name, target, type_name, packed) -> None:
    planned = plan(packed(name), target=target)
    assert {tensor.codec.name for tensor in planned.tensors if tensor.spec.role == "linear"} == {type_name}


@pytest.mark.parametrize("type_name", ["tq1_0", "tq2_0", "q2_k"])
@pytest.mark.parametrize("name", ["14b-seed", "14b-newer", "bitcpm", "bonsai"])
def test_a_type_with_wider_blocks_stops_with_its_error_and_the_alternatives(name, type_name, packed, tmp_path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(TensorError) as stopped:
        convert(packed(name), out, type=type_name)
    message = str(stopped.value)
    first = "model.layers.0.self_attn.q_proj.weight"
    assert message.startswith(f"{first}: its values are on a ternary grid per {PACKED[name].group} columns")
    assert "--type q2_0, --type q4_0" in message
    assert "--allow-lossy" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())
    # The error that it foretells is the one that it makes.
    convert(packed(name), out, type=type_name, allow_lossy=True, check=False)
    found, expected = gguf_weights.read(out)[first], weights(name)[first]
    error = float(((found - expected) ** 2).sum() / (expected**2).sum()) ** 0.5
    assert f"by {error:.0%} (relative error)" in message
    # Q2_K has a scale per 16 columns, of 4 bits: a type with more would be exact.
    assert error > (0.003 if type_name == "q2_k" else 0.1)


def test_ternary_embeddings_and_output_can_stay_ternary(packed, tmp_path: Path) -> None:
    for name in ("bonsai", "14b-seed"):
        out = tmp_path / f"{name}.gguf"
        convert(packed(name), out, type="q2_0", embedding_type="q2_0", output_type="q2_0", check=False)
        types = gguf_weights.types(out)
        assert {types["token_embd.weight"], types["output.weight"], types["blk.0.attn_q.weight"]} == {"q2_0"}
        found, expected = gguf_weights.read(out), weights(name)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):
            assert gguf_weights.relative_error(found[key], expected[key]) <= tolerance(PACKED[name], "q2_0")


def test_a_norm_of_tiny_values_keeps_them(packed, tmp_path: Path) -> None:
    convert(packed("2b4t"), tmp_path / "out.gguf", check=False)
    norms = gguf_weights.read(tmp_path / "out.gguf", PACKED["2b4t"].sub_norms)
    assert 0 < norms["model.layers.1.mlp.ffn_sub_norm.weight"][0] < 1e-31


def test_a_2b4t_file_goes_by_a_name_that_stock_programs_refuse(packed, tmp_path: Path) -> None:
    convert(packed("2b4t"), tmp_path / "out.gguf")
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert fields["general.architecture"].contents() == "bitnet-b1.58"
    own = {key.split(".", 2)[2] for key in fields if key.startswith("bitnet-b1.58.")}
    graph = {key.split(".", 1)[1] for key in fields if key.startswith("bitnet.")}
    assert own == graph
    assert {"block_count", "attention.head_count_kv", "rope.freq_base", "feed_forward_length"} <= graph
    for key in graph:
        assert fields[f"bitnet-b1.58.{key}"].contents() == fields[f"bitnet.{key}"].contents()

"""inspect(): grids, zeros, bits, exact types and sizes, against what was built and what convert() then writes."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests import checkpoints, packed_checkpoints
from tests.checkpoint_recipes import RECIPES
from tests.gguf_edit import patch, rewrite
from tests.oracles import libggml
from tritgguf.converter import convert
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.inspection.inspection import Inspection, inspect
from tritgguf.converter.inspection.tensor_facts import TensorFacts
from tritgguf.converter.quant.codec import codecs

Folder = Callable[[str], Path]
UP = "blk.1.ffn_up.weight"
TERNARY = ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0")


def tensor(found: Inspection, name: str) -> TensorFacts:
    return next(tensor for tensor in found.tensors if tensor.name == name)


@pytest.mark.parametrize(
    ("name", "extent", "bits", "ternary", "near"),
    [
        ("llama1", "tensor", 16, TERNARY, ()),
        ("llama-shards-of-rows", "row shard", 16, TERNARY, ()),
        ("llama-tied", "row", 16, TERNARY, ()),
        ("bonsai", "128 columns", 16, ("q2_0", "q4_0"), ()),
        ("14b-seed", "64 columns", 2 + 32 / 64, (), ("q2_0", "q4_0")),
        ("14b-newer", "64 columns", 2 + 32 / 64, ("q2_0", "q4_0"), ()),
        ("2b4t", "tensor", 2 + 16 / (512 * 256), TERNARY, ()),
        ("2b4t-scalar", "tensor", 2 + 32 / (512 * 256), TERNARY, ()),  # the graph honours a float32 scale
        ("llama-rows", "row", 2 + 32 / 256, (), TERNARY),
        ("1bitllm", "tensor", 16, TERNARY, ()),
    ],
)
def test_grids_of_a_folder(
    name: str, extent: str, bits: float, ternary: tuple[str, ...], near: tuple[str, ...], model: Folder
) -> None:
    facts = tensor(inspect(model(name)), UP)
    assert facts.grid is not None
    assert (facts.grid.levels, facts.grid.extent, facts.grid.outliers) == (3, extent, 0)
    assert tuple(kind for kind in facts.exact_types if codecs()[kind].ternary) == ternary
    assert facts.near_types == near
    assert (facts.grid.fp16_error > 0) == (bool(near) or name in ("2b4t-scalar", "1bitllm"))
    assert facts.bits_per_weight == pytest.approx(bits, rel=1e-12)
    assert facts.as_json()["grid"]["extent"] == extent


@pytest.mark.parametrize("name", ["llama1", "2b4t", "14b-padded", "1bitllm"])
def test_zeros_are_counted(name: str, model: Folder) -> None:
    weights = (packed_checkpoints if name in packed_checkpoints.PACKED else checkpoints).weights(name)
    for facts in inspect(model(name)).tensors:
        if facts.role in ("linear", "embedding", "output"):
            assert facts.zeros == pytest.approx(float((weights[facts.source] == 0).mean()), abs=1e-12), facts.name


def test_ordinary_floats(model: Folder) -> None:
    found = inspect(model("llama-gqa"))
    facts = tensor(found, UP)
    assert facts.grid is None
    assert facts.exact_types == ("bf16", "f32")  # some values are too small for fp16
    assert (found.kind, found.hf_class, found.architecture) == ("folder", "LlamaForCausalLM", "llama")
    assert (found.source, found.dtypes) == ("plain floats", {"BF16": 21})
    assert found.n_parameters == sum(values.size for values in checkpoints.weights("llama-gqa").values())
    assert found.refused is None
    assert {name for name, size in found.sizes.items() if size.exact} == {"auto", "bf16", "f32"}


@pytest.mark.parametrize(
    "name", ["llama1", "llama-gqa", "llama-llama3", "2b4t-scalar", "14b-seed", "bonsai", "qwen2-tied"]
)
def test_sizes_and_exactness_are_those_of_the_files(name: str, model: Folder, tmp_path: Path) -> None:
    if name in RECIPES:
        source = checkpoints.build(name, tmp_path / "model", replace(RECIPES[name], layers=1))
    else:
        source = model(name)
    found = inspect(source)
    assert set(found.sizes) == {"auto", *(kind for kind, codec in codecs().items() if codec.for_linear)}
    for kind, size in found.sizes.items():
        result = convert(source, tmp_path / f"{kind}.gguf", kind, check=False, allow_lossy=True)
        assert size.file_bytes == result.out.stat().st_size, kind
        linear = [plan for plan in result.plan.tensors if plan.spec.role == "linear"]
        assert size.n_linear == len(linear)
        assert size.n_exact == sum(plan.exact is True for plan in linear), kind
        assert size.n_near == sum(plan.grid is not None and not plan.exact for plan in linear), kind
    if name == "bonsai":  # its embeddings and output are on the grid too
        assert found.sizes["auto"].file_bytes < found.sizes["q4_0"].file_bytes


def test_rows_that_do_not_fit(model: Folder, tmp_path: Path) -> None:
    found = inspect(model("llama-hidden-192"))
    size = found.sizes["tq2_0"]
    assert (size.n_linear, size.n_unfit, size.n_exact) == (14, 12, 2)
    out = convert(model("llama-hidden-192"), tmp_path / "out.gguf", "tq2_0", fallback="f16", check=False).out
    assert size.file_bytes == out.stat().st_size
    padded = inspect(model("14b-padded")).sizes["tq2_0"]  # no row of 288 or 480 fits
    assert (padded.file_bytes, padded.n_unfit, padded.n_exact) == (None, 14, 0)


def test_where_types_run(model: Folder) -> None:
    sizes = inspect(model("llama1")).sizes
    assert sizes["tq2_0"].runs_on == ("cpu", "metal", "vulkan")
    assert sizes["q2_0"].slow_on == ("x86",)
    assert "ollama" in sizes["q2_k"].runs_on
    assert sizes["f16"].runs_on == ("cpu", "cuda", "metal", "vulkan", "ollama")
    assert {size.runs_on for size in inspect(model("2b4t")).sizes.values()} == {("cpu",)}  # needs our own runtime


def test_an_outlier_is_counted_and_nothing_ternary_is_exact(model: Folder, tmp_path: Path) -> None:
    out = convert(model("llama1"), tmp_path / "out.gguf", "f16", check=False).out

    def disturb(rows: np.ndarray) -> None:
        halves = rows.view("<f2")
        places = np.argwhere(halves != 0)[[5, 4000]]
        halves[tuple(places.T)] *= np.float16(1.5)

    facts = tensor(inspect(patch(out, UP, disturb)), UP)
    assert facts.grid is not None
    assert facts.grid.outliers == 2
    assert facts.exact_types == ("f16", "bf16", "f32")


def test_a_gguf_file(model: Folder, tmp_path: Path) -> None:
    out = convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out
    values = np.random.default_rng(2).standard_normal((512, 256), dtype=np.float32)
    kind = GGMLQuantizationType.Q4_K
    out = rewrite(out, tmp_path / "mixed.gguf", tensors={UP: (libggml.quantize(values, kind), kind)})
    found = inspect(out)
    assert (found.kind, found.hf_class, found.architecture) == ("gguf", None, "llama")
    facts = tensor(found, UP)
    assert (facts.dtype, facts.grid, facts.bits_per_weight) == ("Q4_K", None, 4.5)
    assert facts.exact_types == ("f32",)
    ternary = tensor(found, "blk.0.ffn_up.weight")
    assert ternary.grid is not None
    assert (ternary.dtype, ternary.grid.extent, ternary.bits_per_weight) == ("TQ2_0", "tensor", 2.0625)
    assert ternary.exact_types[:5] == TERNARY
    assert found.sizes["q2_k"].n_exact == found.sizes["q2_k"].n_linear - 1
    for kind_name in ("q2_k", "f16"):
        written = convert(out, tmp_path / f"{kind_name}.gguf", kind_name, check=False).out
        assert found.sizes[kind_name].file_bytes == written.stat().st_size


def test_a_folder_without_weights(model: Folder, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model("llama-gqa") / "config.json").read_text())
    found = inspect(tmp_path)
    assert all(facts.grid is None and facts.exact_types == () and facts.dtype == "unknown" for facts in found.tensors)
    assert all(size.exact is None for size in found.sizes.values())
    assert any("has no weights" in note for note in found.notes)
    assert found.file_bytes == 0


def test_json_and_progress(model: Folder) -> None:
    steps: list[tuple[str, int, int]] = []
    found = inspect(model("bitcpm"), progress=lambda *step: steps.append(step))
    said = json.loads(json.dumps(found.as_json()))
    assert said.keys() >= {"kind", "path", "architecture", "source", "parameters", "tensors", "sizes", "notes"}
    assert said["path"] == "bitcpm"
    assert said["sizes"]["q2_0"].items() >= {"exact": True, "linear_tensors": 14, "exact_tensors": 14}.items()
    assert "cuda" in said["sizes"]["q2_0"]["runs_on"]
    assert steps[-1] == ("reading", said["file_bytes"], said["file_bytes"])
    assert [math.prod(facts["shape"]) for facts in said["tensors"]] == [math.prod(f.shape) for f in found.tensors]


# --- what can't be converted -----------------------------------------------------------------------------------


def edited(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_unknown_architecture_is_seen_all_the_same(tmp_path: Path) -> None:
    found = inspect(edited(checkpoints.build("llama1", tmp_path / "model"), architectures=["GPT9ForCausalLM"]))
    assert found.refused is not None
    assert "GPT9ForCausalLM isn't known" in found.refused
    assert (found.hf_class, found.architecture, found.source, found.sizes) == (
        "GPT9ForCausalLM", None, "plain floats", {},
    )  # fmt: skip
    facts = tensor(found, "model.layers.1.mlp.up_proj.weight")
    assert facts.grid is not None
    assert facts.grid.extent == "tensor"
    assert tensor(found, "lm_head.weight").role == "output"
    assert tensor(found, "model.embed_tokens.weight").role == "embedding"
    assert tensor(found, "model.norm.weight").role == "other"


def test_an_unknown_packing_is_seen_as_it_lies(tmp_path: Path) -> None:
    folder = packed_checkpoints.build("2b4t", tmp_path / "model")
    found = inspect(edited(folder, quantization_config={"quant_method": "awq"}))
    assert found.refused is not None
    assert "awq" in found.refused
    assert found.source is None
    assert any("holds U8" in note for note in found.notes)
    assert tensor(found, "model.layers.0.mlp.up_proj.weight").dtype == "U8"


def test_a_gguf_file_of_no_language_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "out.gguf", "clip")
    writer.add_tensor("v.patch_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspect(tmp_path / "out.gguf")
    assert found.refused is not None
    assert "no linear layer under a known name" in found.refused
    assert (found.architecture, found.n_parameters) == ("clip", 128)


def test_damage_is_an_error(model: Folder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no config\.json"):
        inspect(tmp_path)
    with pytest.raises(SourceError, match="doesn't exist"):
        inspect(tmp_path / "nothing")
    cut = checkpoints.build("llama1", tmp_path / "cut")
    blob = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(blob[:-100])
    with pytest.raises(SourceError, match="truncated"):
        inspect(cut)
    whole = convert(model("llama1"), tmp_path / "out.gguf", "tq2_0", check=False).out
    (tmp_path / "half.gguf").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(SourceError, match=r"half\.gguf: is truncated"):
        inspect(tmp_path / "half.gguf")
    (tmp_path / "swapped.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "big") + whole.read_bytes()[8:])
    with pytest.raises(UnsupportedError, match="is a big-endian GGUF file"):
        inspect(tmp_path / "swapped.gguf")


def test_a_nan_is_told_and_the_rest_is_shown(model: Folder, tmp_path: Path) -> None:
    out = convert(model("llama1"), tmp_path / "out.gguf", "f16", check=False).out

    def poison(rows: np.ndarray) -> None:
        rows.view("<f2")[100, 7] = np.nan

    found = inspect(patch(out, UP, poison))
    assert tensor(found, UP).exact_types == ()
    assert any(f"tensor {UP} has 1 NaN or Inf" in note for note in found.notes)
    assert tensor(found, "blk.0.ffn_up.weight").grid is not None

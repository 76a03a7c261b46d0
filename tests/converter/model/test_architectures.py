"""The tensors that each architecture lists, against gguf's tables of names and graphs."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES, get_tensor_name_map

from tests import maple_model
from tests.checkpoint_recipes import RECIPES, config
from tests.packed_checkpoints import PACKED
from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.model.architecture import (
    Architecture,
    TensorSpec,
    architecture_for,
    architectures,
    linear_names,
)
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.rope import ROPE_FREQS

CONFIGS = {name: config(recipe) for name, recipe in RECIPES.items() if name != "qwen3-biases"}  # that is refused
CONFIGS |= {name: config(packed.base) for name, packed in PACKED.items()}
# Matrices of Qwen3.5's and Qwen3-Next's linear attention that are small, or convolve.
KEPT = ("in_proj_a.weight", "in_proj_b.weight", "in_proj_ba.weight", "conv1d.weight")
CONFIGS["maple"] = config(maple_model.RECIPE)
# gguf 0.19 doesn't know Maple, whose graph has the tensors of Qwen3-MoE's.
TABLES: dict[MODEL_ARCH | str, MODEL_ARCH] = {"maple": MODEL_ARCH.QWEN3MOE}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_those_of_gguf_s_tables(name: str) -> None:
    architecture = architecture_for(CONFIGS[name])
    read = architecture.read_config(CONFIGS[name])
    specs = architecture.tensors(read)
    graph = TABLES.get(architecture.graph, architecture.graph)
    assert not isinstance(graph, str)
    known = get_tensor_name_map(graph, read.n_layers)
    in_graph = {
        TENSOR_NAMES[tensor].format(bid=layer) for tensor in MODEL_TENSORS[graph] for layer in range(read.n_layers)
    } | {ROPE_FREQS.removesuffix(".weight")}  # gguf's tables lack it for granite, whose graph reads it
    for spec in specs:
        mapped = known.get_name(spec.source.replace("experts.*.", "experts."), try_suffixes=(".weight", ".bias"))
        assert mapped in (spec.name, None), spec.source
        assert spec.name.removesuffix(".weight").removesuffix(".bias") in in_graph
    for attribute in ("source", "name"):
        named = [getattr(spec, attribute) for spec in specs]
        assert len(set(named)) == len(named)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_linear_tensors_are_those_with_rows_and_columns_in_a_layer(name: str) -> None:
    architecture = architecture_for(CONFIGS[name])
    specs = architecture.tensors(architecture.read_config(CONFIGS[name]))
    matrices = [s for s in specs if len(s.shape) >= 2 and s.name.startswith("blk.") and s.role != "router"]
    names = {matrix.source for s in matrices for matrix in s.matrices()}
    assert linear_names(specs) == {name for name in names if not name.endswith(KEPT)}


def some_config(architecture: Architecture) -> dict[str, Any]:
    """Return a config.json of the first recipe that has one of the architecture's classes."""
    return next(keys for keys in CONFIGS.values() if keys["architectures"][0] in architecture.classes)


def scaled(architecture: Architecture) -> DecoderConfig:
    """Return the config of a model whose rotation no key expresses."""
    keys = {**some_config(architecture), "rope_scaling": LLAMA3}
    keys.pop("rope_parameters", None)
    return architecture.read_config(keys)


def divisors(architecture: Architecture) -> list[TensorSpec]:
    return [spec for spec in architecture.tensors(scaled(architecture)) if spec.name == ROPE_FREQS]


READS_DIVISORS = [architecture for architecture in architectures() if divisors(architecture)]
OTHERS = [architecture for architecture in architectures() if architecture not in READS_DIVISORS]


def test_the_graphs_that_read_divisors() -> None:
    # The last is Mixtral.
    assert [architecture.name for architecture in READS_DIVISORS] == ["granite", "llama", "minicpm", "llama"]
    for architecture in READS_DIVISORS:
        config = scaled(architecture)
        (found,) = divisors(architecture)
        assert found.data is not None
        assert (found.data.shape, found.data.max()) == ((config.head_dim // 2,), 8)
        assert not [key for key in architecture.metadata(config) if ".rope.scaling" in key]


@pytest.mark.parametrize("architecture", OTHERS, ids=lambda architecture: architecture.name)
def test_the_other_graphs_refuse_a_rotation_beyond_the_keys(architecture: Architecture) -> None:
    """Without divisors the file would hold an unscaled rotation."""
    with pytest.raises(
        UnsupportedError, match=rf"llama3 can't be expressed in llama\.cpp's {architecture.graph_name} "
    ):
        architecture.metadata(scaled(architecture))

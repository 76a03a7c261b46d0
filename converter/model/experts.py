"""The feed-forward part of a mixture of experts: its tensors, keys, and what llama.cpp's graphs demand of it.

A router scores all experts for each token; the best few compute, and their outputs are added with the scores'
softmax as weights. In GGUF each of gate, up and down is one tensor of three dimensions, the experts' matrices one after
the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf import MODEL_TENSOR, Keys

from tritgguf.converter.core.settings import Settings, shown
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, uint32
from tritgguf.converter.model.architecture import TensorSpec
from tritgguf.converter.model.config import MOST_IN_A_ROW, DecoderConfig
from tritgguf.converter.model.decoder import gguf_name, in_layer, linear
from tritgguf.converter.model.stored_forms import Matrices, RowsOfMatrices, Whole

MOST_EXPERTS = 1024  # llama.cpp's LLAMA_MAX_EXPERTS
COUNTS = ("num_experts", "num_local_experts")  # of most classes; of Mixtral, and whatever transformers 5 saves


@dataclass(frozen=True)
class ExpertNames:
    """What checkpoints call the mixture of a layer: its module, and the matrices gate, up and down of an expert."""

    module: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


def n_experts(config: DecoderConfig) -> int:
    """Return the number of experts in a layer; raise SourceError where it is missing or ambiguous."""
    present = [key for key in COUNTS if config.raw.has(key)] or [COUNTS[0]]
    found = [config.raw.integer(key, most=MOST_EXPERTS) for key in present]
    if len(set(found)) > 1:
        raise SourceError(f"config.json: num_experts is {found[0]}, but num_local_experts is {found[1]}")
    return found[0]


def experts(config: DecoderConfig, layer: int, size: int, names: ExpertNames = ExpertNames()) -> list[TensorSpec]:
    """Return the router, (n_experts, hidden_size), and the experts' projections gate, up and down.

    `size` is an expert's number of inner values. transformers 5 may store gate and up of all experts as one tensor.
    """
    count, hidden = n_experts(config), config.hidden_size
    gate_up, down = (in_layer(layer, f"mlp.experts.{matrices}") for matrices in ("gate_up_proj", "down_proj"))
    router = [in_layer(layer, f"{module}.gate.weight") for module in dict.fromkeys((names.module, "mlp"))]
    return [
        TensorSpec(
            router[0],
            gguf_name(MODEL_TENSOR.FFN_GATE_INP, layer),
            (count, hidden),
            "router",
            stored=tuple(Whole(name) for name in router),
        ),
        *(
            TensorSpec(
                name := in_layer(layer, f"{names.module}.experts.*.{matrix}.weight"),
                gguf_name(tensor, layer),
                (count, *shape),
                "linear",
                stored=(Matrices(name, count), together),
            )
            for matrix, tensor, shape, together in (
                (names.gate, MODEL_TENSOR.FFN_GATE_EXP, (size, hidden), RowsOfMatrices(gate_up, 0, 2 * size)),
                (names.up, MODEL_TENSOR.FFN_UP_EXP, (size, hidden), RowsOfMatrices(gate_up, size, 2 * size)),
                (names.down, MODEL_TENSOR.FFN_DOWN_EXP, (hidden, size), Whole(down)),
            )
        ),
    ]


def shared_expert(config: DecoderConfig, layer: int, size: int) -> list[TensorSpec]:
    """Return the expert that computes for every token, with `size` inner values, and its gate, (1, hidden_size)."""
    hidden = config.hidden_size
    gate, name = in_layer(layer, "mlp.shared_expert_gate.weight"), gguf_name(MODEL_TENSOR.FFN_GATE_INP_SHEXP, layer)
    return [
        TensorSpec(gate, name, (1, hidden), "router"),
        *linear(layer, "mlp.shared_expert.gate_proj", MODEL_TENSOR.FFN_GATE_SHEXP, (size, hidden)),
        *linear(layer, "mlp.shared_expert.up_proj", MODEL_TENSOR.FFN_UP_SHEXP, (size, hidden)),
        *linear(layer, "mlp.shared_expert.down_proj", MODEL_TENSOR.FFN_DOWN_SHEXP, (hidden, size)),
    ]


def expert_keys(config: DecoderConfig, arch: str) -> Metadata:
    """Return how many experts there are, and how many compute for each token."""
    count, used = n_experts(config), config.raw.integer("num_experts_per_tok")
    if used > count:
        raise SourceError(f"config.json: num_experts_per_tok is {used}, but there are only {count} experts")
    return {
        Keys.LLM.EXPERT_COUNT.format(arch=arch): uint32(count),
        Keys.LLM.EXPERT_USED_COUNT.format(arch=arch): uint32(used),
    }


def expert_settings(keys: Settings, count: str = COUNTS[0]) -> dict[str, int]:
    """Return config.json's settings from a GGUF file's keys: the way back of `expert_keys`."""
    return {count: keys.integer("expert_count"), "num_experts_per_tok": keys.integer("expert_used_count")}


def expert_size(config: DecoderConfig) -> int:
    """Return an expert's number of inner values, where it isn't intermediate_size."""
    return config.raw.integer("moe_intermediate_size", most=MOST_IN_A_ROW)


def require(config: DecoderConfig, key: str, values: Sequence[object], why: str) -> None:
    """Raise UnsupportedError unless a key of config.json is missing or has one of the values that the graph assumes."""
    found = config.raw.get(key)
    if found is not None and found not in values:
        raise UnsupportedError(f"config.json: {key} is {shown(found)}, but llama.cpp's {config.graph} graph {why}")


def require_experts_in_every_layer(config: DecoderConfig) -> None:
    """Raise UnsupportedError where some layers have one feed-forward part for all tokens."""
    require(config, "decoder_sparse_step", (1,), "has experts in every layer")
    require(config, "mlp_only_layers", ([],), "has experts in every layer")


def require_normalized_scores(config: DecoderConfig) -> None:
    """Raise UnsupportedError unless the scores of the experts that compute are divided by their sum."""
    if not config.flag("norm_topk_prob"):
        raise UnsupportedError(
            "config.json: norm_topk_prob is false, but llama.cpp's "
            f"{config.graph} graph divides the experts' scores by their sum"
        )

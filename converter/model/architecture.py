"""What an architecture is: which tensors a checkpoint must hold, and what they and config.json become in GGUF.

The decoders here share one shape (attention with rotary embeddings, gated FFN, RMS norms); an `Architecture` says
which of the variations the graph of its name in llama.cpp computes. Anything else is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    MODEL_TENSOR,
    TENSOR_NAMES,
    Keys,
    TensorNameMap,
    get_tensor_name_map,
)

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.core.registry import offered
from tritgguf.converter.core.tensors import Float32Array, RowIndices
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, float32, string, uint32
from tritgguf.converter.model.config import DecoderConfig, read_decoder_config
from tritgguf.converter.model.rope import rotation, trained_length

ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the graph needs: `source` and `name` in checkpoint and GGUF, `shape` as in the checkpoint.

    `role` is "linear", "embedding", "output", "norm" or "bias"; `rows` reorders the rows where the graph wants it.
    A tensor with `data` isn't in the checkpoint but follows from config.json.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    role: str
    rows: RowIndices | None = None
    data: Float32Array | None = None


@dataclass(frozen=True)
class Biases:
    """Which linear layers carry a bias."""

    qkv: bool = False
    attention_output: bool = False
    ffn: bool = False


@dataclass(frozen=True)
class Architecture:
    """One graph of llama.cpp and the transformers classes that it computes.

    `classes` maps each class to what it assumes where config.json is silent; `biases` tells from config.json which
    biases there are. `own_name` is what the file calls itself where the stock graph alone would compute something else:
    it then carries its keys under both names. `sub_norms` are the norms before o_proj and down_proj. The flags say what
    the graph does: pair rotated rows as neighbours (`permutes_qk`), divide frequencies by rope_freqs.weight
    (`reads_rope_divisors`), multiply every linear layer by its `.scale` (`honours_scales`), norm q and k (`qk_norms`),
    allow any head_dim (`free_head_dim`), have an output layer of its own (`own_output`).
    """

    graph: MODEL_ARCH
    classes: Mapping[str, ConfigJson]
    biases: Callable[[ConfigJson], Biases] = lambda _config: Biases()
    extra_metadata: Callable[[DecoderConfig], Metadata] = lambda _config: {}
    own_name: str | None = None
    activations: tuple[str, ...] = ("silu", "swish")
    sub_norms: tuple[str, str] | None = None
    permutes_qk: bool = False
    reads_rope_divisors: bool = False
    honours_scales: bool = False
    qk_norms: bool = False
    free_head_dim: bool = True
    own_output: bool = True

    @property
    def graph_name(self) -> str:
        """What llama.cpp calls the graph."""
        return MODEL_ARCH_NAMES[self.graph]

    @property
    def name(self) -> str:
        """The value of `general.architecture`."""
        return self.own_name or self.graph_name

    @property
    def targets(self) -> tuple[str, ...] | None:
        """Where a file can run, None for anywhere. Only tritgguf's runtime knows `own_name`, and it uses the CPU."""
        return ("cpu",) if self.own_name else None

    def read_config(self, raw: ConfigJson) -> DecoderConfig:
        """Read config.json; raise SourceError or UnsupportedError where the graph can't compute it."""
        assumed = self.classes[raw["architectures"][0]]
        config = read_decoder_config({**assumed, **raw}, self.name, self.activations)
        if not self.free_head_dim and config.head_dim * config.n_heads != config.hidden_size:
            raise UnsupportedError(
                f"config.json: {config.n_heads} heads of {config.head_dim} don't make hidden_size "
                f"{config.hidden_size}, which llama.cpp's {self.name} graph demands"
            )
        if not self.own_output and not config.tied:
            raise UnsupportedError(
                f"config.json: tie_word_embeddings is false, but llama.cpp's {self.graph_name} graph has no output "
                "layer of its own"
            )
        return config

    def metadata(self, config: DecoderConfig) -> Metadata:
        """Return the hyperparameter keys."""
        keys: Metadata = {Keys.General.ARCHITECTURE: string(self.name)}
        for prefix in {self.name: None, self.graph_name: None}:
            keys.update(self._hyperparameters(config, prefix))
        return keys | self.extra_metadata(config)

    def _hyperparameters(self, config: DecoderConfig, arch: str) -> Metadata:
        keys: Metadata = {
            Keys.LLM.BLOCK_COUNT.format(arch=arch): uint32(config.n_layers),
            Keys.LLM.CONTEXT_LENGTH.format(arch=arch): uint32(context_length(config)),
            Keys.LLM.EMBEDDING_LENGTH.format(arch=arch): uint32(config.hidden_size),
            Keys.LLM.FEED_FORWARD_LENGTH.format(arch=arch): uint32(config.intermediate_size),
            Keys.LLM.VOCAB_SIZE.format(arch=arch): uint32(config.vocab_size),
            Keys.Attention.HEAD_COUNT.format(arch=arch): uint32(config.n_heads),
            Keys.Attention.HEAD_COUNT_KV.format(arch=arch): uint32(config.n_kv_heads),
            Keys.Attention.KEY_LENGTH.format(arch=arch): uint32(config.head_dim),
            Keys.Attention.VALUE_LENGTH.format(arch=arch): uint32(config.head_dim),
            Keys.Attention.LAYERNORM_RMS_EPS.format(arch=arch): float32(config.rms_norm_eps),
        }
        if config.sliding_window is not None:
            keys[Keys.Attention.SLIDING_WINDOW.format(arch=arch)] = uint32(config.sliding_window)
        return keys | rotation(config, arch, reads_divisors=self.reads_rope_divisors).metadata

    def tensors(self, config: DecoderConfig) -> list[TensorSpec]:
        """Return every tensor of the file, in the order in which it is written."""
        names = get_tensor_name_map(self.graph, config.n_layers)
        hidden, vocab = config.hidden_size, config.vocab_size
        specs = [_spec(names, "model.embed_tokens.weight", (vocab, hidden), "embedding")]
        divisors = rotation(config, self.name, reads_divisors=self.reads_rope_divisors).divisors
        if divisors is not None:
            specs.append(TensorSpec("config.json", ROPE_FREQS, divisors.shape, "rope", data=divisors))
        for layer in range(config.n_layers):
            specs += self._layer(names, config, f"model.layers.{layer}")
        specs.append(_spec(names, "model.norm.weight", (hidden,), "norm"))
        if not config.tied:
            specs.append(_spec(names, "lm_head.weight", (vocab, hidden), "output"))
        return specs

    def _layer(self, names: TensorNameMap, config: DecoderConfig, prefix: str) -> Iterator[TensorSpec]:
        hidden, ffn, head = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.n_heads * head, config.n_kv_heads * head
        biases = self.biases(config.raw)
        attention_norm, ffn_norm = self.sub_norms or (None, None)
        order_q = pair_neighbours(config.n_heads, head) if self.permutes_qk else None
        order_k = pair_neighbours(config.n_kv_heads, head) if self.permutes_qk else None
        yield _spec(names, f"{prefix}.input_layernorm.weight", (hidden,), "norm")
        for part, shape, biased, rows in (
            ("self_attn.q_proj", (queries, hidden), biases.qkv, order_q),
            ("self_attn.k_proj", (keys, hidden), biases.qkv, order_k),
            ("self_attn.v_proj", (keys, hidden), biases.qkv, None),
            ("self_attn.o_proj", (hidden, queries), biases.attention_output, None),
        ):
            yield _spec(names, f"{prefix}.{part}.weight", shape, "linear", rows)
            if biased:
                yield _spec(names, f"{prefix}.{part}.bias", shape[:1], "bias", rows)
        if self.qk_norms:
            yield _spec(names, f"{prefix}.self_attn.q_norm.weight", (head,), "norm")
            yield _spec(names, f"{prefix}.self_attn.k_norm.weight", (head,), "norm")
        if attention_norm:
            yield _layer_norm(prefix, attention_norm, MODEL_TENSOR.ATTN_SUB_NORM, queries)
        yield _spec(names, f"{prefix}.post_attention_layernorm.weight", (hidden,), "norm")
        for part, shape in (("gate_proj", (ffn, hidden)), ("up_proj", (ffn, hidden)), ("down_proj", (hidden, ffn))):
            yield _spec(names, f"{prefix}.mlp.{part}.weight", shape, "linear")
            if biases.ffn:
                yield _spec(names, f"{prefix}.mlp.{part}.bias", shape[:1], "bias")
        if ffn_norm:
            yield _layer_norm(prefix, ffn_norm, MODEL_TENSOR.FFN_SUB_NORM, ffn)


def _spec(
    names: TensorNameMap, source: str, shape: tuple[int, ...], role: str, rows: RowIndices | None = None
) -> TensorSpec:
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise SourceError(f"gguf's tensor name map has no name for {source}")
    return TensorSpec(source, name, shape, role, rows)


def _layer_norm(prefix: str, part: str, tensor: MODEL_TENSOR, size: int) -> TensorSpec:
    """Return a norm that gguf's tensor name map doesn't know under this name."""
    layer = int(prefix.rsplit(".", 1)[1])
    return TensorSpec(f"{prefix}.{part}.weight", TENSOR_NAMES[tensor].format(bid=layer) + ".weight", (size,), "norm")


def pair_neighbours(n_heads: int, head_dim: int) -> RowIndices:
    """Return the row order that puts rotary partners side by side, int64 (n_heads * head_dim,).

    transformers rotates value i with value i + head_dim/2; ggml's NORM rope, which the llama graph uses, rotates
    neighbours 2i and 2i + 1.
    """
    rows: RowIndices = np.arange(n_heads * head_dim, dtype=np.int64)
    rows = rows.reshape(n_heads, 2, head_dim // 2).swapaxes(1, 2).ravel()
    return rows


def context_length(config: DecoderConfig) -> int:
    """Return how many tokens the graph computes rightly: within the window, full attention is sliding attention."""
    length = trained_length(config)
    return length if config.sliding_window is None else min(length, config.sliding_window)


def architectures() -> tuple[Architecture, ...]:
    """Return every architecture."""
    return offered("tritgguf.converter.model.arch", "ARCHITECTURE", Architecture)


def architecture_for(raw: dict[str, Any] | ConfigJson) -> Architecture:
    """Return the architecture that config.json names; raise UnsupportedError listing the known ones."""
    named = raw.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise SourceError("config.json names no architectures; expected for example ['LlamaForCausalLM']")
    known = {hf_name: architecture for architecture in architectures() for hf_name in architecture.classes}
    if named[0] in known:
        return known[named[0]]
    if named[0].endswith("Model") and not named[0].endswith("LMHeadModel"):
        raise UnsupportedError(
            f"config.json: {named[0]} is a model without an output layer, such as one for text embeddings; the graphs "
            "here are those of language models that generate text"
        )
    raise UnsupportedError(
        f"config.json: architecture {named[0]} isn't known here; known are {', '.join(sorted(known))}"
    )

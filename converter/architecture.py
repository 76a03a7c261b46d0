"""What an architecture is: which tensors a checkpoint must hold, and what they and config.json become in GGUF.

The decoders here share one shape (attention with rotary embeddings, gated FFN, RMS norms); an `Architecture` says
which of the variations the graph of its name in llama.cpp computes. Anything else is refused, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, Keys, TensorNameMap, get_tensor_name_map

from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.metadata import Metadata, float32, string, uint32
from tritgguf.converter.model_config import ConfigJson, DecoderConfig, read_decoder_config
from tritgguf.converter.registry import offered
from tritgguf.converter.rope import rotation, trained_length
from tritgguf.converter.tensors import Float32Array, RowIndices

# Buffers that old checkpoints carry; the graph computes them itself.
IGNORED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)$")
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

    `biases` tells from config.json which biases there are; `reads_rope_divisors` whether the graph reads
    rope_freqs.weight, `honours_scales` whether it multiplies every linear layer by its `.scale`;
    `default_head_dim` is what transformers assumes where
    config.json is silent (None: hidden_size / heads); `free_head_dim` whether the graph allows any other;
    `slides_by_default` whether a sliding_window counts where config.json doesn't switch it on.
    """

    graph: MODEL_ARCH
    hf_names: tuple[str, ...]
    biases: Callable[[ConfigJson], Biases]
    permutes_qk: bool = False
    reads_rope_divisors: bool = False
    honours_scales: bool = False
    qk_norms: bool = False
    free_head_dim: bool = True
    default_head_dim: int | None = None
    slides_by_default: bool = False

    @property
    def name(self) -> str:
        """The value of `general.architecture`."""
        return MODEL_ARCH_NAMES[self.graph]

    def read_config(self, raw: ConfigJson) -> DecoderConfig:
        """Read config.json; raise SourceError or UnsupportedError where the graph can't compute it."""
        config = read_decoder_config(
            raw, self.name, head_dim=self.default_head_dim, slides_by_default=self.slides_by_default
        )
        if not self.free_head_dim and config.head_dim * config.n_heads != config.hidden_size:
            raise UnsupportedError(
                f"config.json: {config.n_heads} heads of {config.head_dim} don't make hidden_size "
                f"{config.hidden_size}, which llama.cpp's {self.name} graph demands"
            )
        return config

    def metadata(self, config: DecoderConfig) -> Metadata:
        """Return the hyperparameter keys."""
        arch = self.name
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
        keys.update(rotation(config, arch, reads_divisors=self.reads_rope_divisors).metadata)
        return {Keys.General.ARCHITECTURE: string(arch), **keys}

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
        yield _spec(names, f"{prefix}.post_attention_layernorm.weight", (hidden,), "norm")
        for part, shape in (("gate_proj", (ffn, hidden)), ("up_proj", (ffn, hidden)), ("down_proj", (hidden, ffn))):
            yield _spec(names, f"{prefix}.mlp.{part}.weight", shape, "linear")
            if biases.ffn:
                yield _spec(names, f"{prefix}.mlp.{part}.bias", shape[:1], "bias")


def _spec(
    names: TensorNameMap, source: str, shape: tuple[int, ...], role: str, rows: RowIndices | None = None
) -> TensorSpec:
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise SourceError(f"gguf's tensor name map has no name for {source}")
    return TensorSpec(source, name, shape, role, rows)


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
    return offered("tritgguf.converter.arch", "ARCHITECTURE", Architecture)


def architecture_for(raw: dict[str, Any] | ConfigJson) -> Architecture:
    """Return the architecture that config.json names; raise UnsupportedError listing the known ones."""
    named = raw.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise SourceError("config.json names no architectures; expected for example ['LlamaForCausalLM']")
    known = {hf_name: architecture for architecture in architectures() for hf_name in architecture.hf_names}
    if named[0] not in known:
        raise UnsupportedError(
            f"config.json: architecture {named[0]} isn't known here; known are {', '.join(sorted(known))}"
        )
    return known[named[0]]

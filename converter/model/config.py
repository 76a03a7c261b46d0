"""config.json of a decoder model, as transformers 4 and transformers 5 write it, in one shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tritgguf.converter.checkpoint.config_json import ConfigJson
from tritgguf.converter.errors import SourceError, UnsupportedError


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: `kind` is transformers' rope_type (default, linear, llama3, yarn), `options` the rest."""

    kind: str
    theta: float
    options: Mapping[str, Any] = field(default_factory=dict)

    def number(self, key: str, default: float | None = None) -> float:
        """Return one numeric option; raise SourceError where it is missing and has no default."""
        value = self.options.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise SourceError(f"config.json: {self.kind} rope scaling needs the number {key}, found {value!r}")
        return float(value)


@dataclass(frozen=True)
class DecoderConfig:
    """The hyperparameters that the architectures share; names follow transformers, sizes are in elements.

    `graph` is llama.cpp's name of the graph, `raw` is config.json with the class's defaults."""

    graph: str
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    tied: bool
    rope: RopeConfig
    sliding_window: int | None
    raw: ConfigJson

    @property
    def query_size(self) -> int:
        """The size of all heads' queries of one token."""
        return self.n_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """The size of all heads' keys of one token, which is that of their values."""
        return self.n_kv_heads * self.head_dim

    def flag(self, key: str) -> bool:
        """Return an optional boolean of config.json, False where it isn't there."""
        return bool(self.raw.get(key, False))


def read_decoder_config(raw: ConfigJson, graph: str, activations: tuple[str, ...]) -> DecoderConfig:
    """Read config.json, with the class's defaults in it; `activations` are those that the graph computes."""
    hidden_size, n_heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    n_kv_heads = _size(raw, "num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise SourceError(
            f"config.json: num_attention_heads {n_heads} isn't a multiple of num_key_value_heads {n_kv_heads}"
        )
    if raw.get("head_dim") is None and hidden_size % n_heads:
        raise SourceError(f"config.json: hidden_size {hidden_size} isn't a multiple of num_attention_heads {n_heads}")
    config = DecoderConfig(
        graph=graph,
        hidden_size=hidden_size,
        intermediate_size=_size(raw, "intermediate_size"),
        n_layers=_size(raw, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=_size(raw, "head_dim", hidden_size // n_heads),
        vocab_size=_size(raw, "vocab_size"),
        max_positions=_size(raw, "max_position_embeddings", 2048),
        rms_norm_eps=float(raw.get("rms_norm_eps") or 1e-6),
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw),
        sliding_window=_sliding_window(raw),
        raw=raw,
    )
    _require_plain_decoder(config, activations)
    return config


def _size(raw: ConfigJson, key: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if type(value) is not int or value < 1:
        raise SourceError(f"config.json: {key} must be a positive integer, found {value!r}")
    return value


def _rope(raw: ConfigJson) -> RopeConfig:
    """Merge `rope_parameters` (transformers 5) with `rope_theta` and `rope_scaling` (transformers 4)."""
    options: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        value = raw.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise SourceError(f"config.json: {key} must be an object, found {value!r}")
        options.update(value)
    theta = options.pop("rope_theta", None)
    theta = raw.get("rope_theta", 10000.0) if theta is None else theta
    if not isinstance(theta, (int, float)) or isinstance(theta, bool) or theta <= 0:
        raise SourceError(f"config.json: rope_theta must be a positive number, found {theta!r}")
    if any(isinstance(value, dict) for value in options.values()):
        raise UnsupportedError(
            "config.json gives rope parameters per layer type; the graphs here rotate every layer alike"
        )
    if raw.get("original_max_position_embeddings") is not None:
        options.setdefault("original_max_position_embeddings", raw["original_max_position_embeddings"])
    old_kind, kind = options.pop("type", None), options.pop("rope_type", None)
    return RopeConfig(kind or old_kind or "default", float(theta), options)


def _sliding_window(raw: ConfigJson) -> int | None:
    """Return the window where a layer slides, by layer_types, else by use_sliding_window."""
    layer_types = raw.get("layer_types")
    if isinstance(layer_types, list):
        slides = "sliding_attention" in layer_types
    else:
        slides = bool(raw.get("use_sliding_window", False))
    return _size(raw, "sliding_window") if slides and raw.get("sliding_window") is not None else None


def _require_plain_decoder(config: DecoderConfig, activations: tuple[str, ...]) -> None:
    """Refuse what changes the arithmetic in a way that the graph doesn't compute."""
    if key := _hadamard_key(config.raw):
        raise UnsupportedError(
            f"config.json: {key} says that the weights lie in a Hadamard basis (as Bonsai 2's do); no graph of "
            "llama.cpp turns the activations into that basis"
        )
    activation = config.raw.get("hidden_act", activations[0])
    if activation not in activations:
        raise UnsupportedError(f"config.json: hidden_act is {activation}, but the graph computes {activations[0]}")
    partial = config.rope.options.get("partial_rotary_factor", config.raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise UnsupportedError(f"config.json: partial_rotary_factor is {partial}, but the graph rotates whole heads")
    if config.head_dim % 2:
        raise UnsupportedError(f"config.json: head_dim {config.head_dim} is odd, but rotary embeddings pair values")


def _hadamard_key(config: ConfigJson) -> str | None:
    """Return the first key, at any depth, that speaks of a Hadamard basis and isn't switched off."""
    for key, value in config.items():
        if "hadamard" in key.lower() and value not in (False, None):
            return key
        if isinstance(value, dict) and (found := _hadamard_key(value)):
            return f"{key}.{found}"
    return None

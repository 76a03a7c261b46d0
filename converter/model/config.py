"""Read config.json of a decoder model, as transformers 4 or transformers 5 writes it, into one dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from tritgguf.converter.checkpoint.config_json import FILE
from tritgguf.converter.core.settings import Settings, shown, shown_key
from tritgguf.converter.errors import SourceError, UnsupportedError

# Far above any model's: a damaged value must not make the program list or pad millions of things.
MOST_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
MOST_IN_A_ROW = 1 << 21  # tokens, or values of a row: the largest vocabularies have half of it
SCALING, PARAMETERS = "rope_scaling", "rope_parameters"  # of transformers 4, of transformers 5
ORIGINAL_LENGTH = "original_max_position_embeddings"


class Ability(Enum):
    """What some graphs of llama.cpp compute and others don't."""

    PARTIAL_ROTATION = auto()  # the first values of each head are rotated, as rope.dimension_count says
    SLIDING_LAYERS = auto()  # layers attend to a window, as attention.sliding_window and its pattern say
    BOTH_LONGROPE_SETS = auto()  # short factors in contexts up to the original length, long ones in larger contexts


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding: `kind` is transformers' rope_type, `theta` the base, `options` the other parameters."""

    kind: str
    theta: float
    options: Settings


@dataclass(frozen=True)
class DecoderConfig:
    """The hyperparameters that the architectures share; names follow transformers, sizes are in elements.

    `graph` is llama.cpp's name of the graph, `abilities` what it computes beyond others; `rotated_size` is how many
    values of each head are rotated; `raw` is config.json with the class's defaults.
    """

    graph: str
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotated_size: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    tied: bool
    rope: RopeConfig
    sliding_window: int | None
    raw: Settings
    abilities: frozenset[Ability] = frozenset()

    @property
    def query_size(self) -> int:
        """The size of all heads' queries of one token."""
        return self.n_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """The size of all heads' keys of one token, which is that of their values."""
        return self.n_kv_heads * self.head_dim

    def flag(self, key: str) -> bool:
        """Return an optional boolean of config.json, False where it is missing."""
        return self.raw.flag(key)


def read_decoder_config(
    keys: Settings, graph: str, activations: tuple[str, ...], abilities: frozenset[Ability] = frozenset()
) -> DecoderConfig:
    """Read config.json's keys, completed with the class's defaults, for llama.cpp's `graph` with these `abilities`.

    `activations` are those that the graph computes, the default first. Raises SourceError where a value is missing or
    wrong, UnsupportedError where the graph computes something else.
    """
    hidden_size, n_heads = _size(keys, "hidden_size"), _size(keys, "num_attention_heads")
    n_kv_heads = _size(keys, "num_key_value_heads", n_heads)
    if n_heads % n_kv_heads:
        raise SourceError(
            f"config.json: num_attention_heads {n_heads} isn't a multiple of num_key_value_heads {n_kv_heads}"
        )
    head_dim, rope = head_size(keys), read_rope(keys)
    config = DecoderConfig(
        graph=graph,
        hidden_size=hidden_size,
        intermediate_size=_size(keys, "intermediate_size"),
        n_layers=keys.integer("num_hidden_layers", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rotated_size=_rotated_size(keys, rope, head_dim, abilities),
        vocab_size=_size(keys, "vocab_size"),
        max_positions=keys.integer("max_position_embeddings", 2048),
        rms_norm_eps=keys.number("rms_norm_eps", 1e-6),
        tied=keys.flag("tie_word_embeddings"),
        rope=rope,
        sliding_window=_sliding_window(keys),
        raw=keys,
        abilities=abilities,
    )
    _require_plain_decoder(config, activations)
    return config


def head_size(keys: Settings) -> int:
    """Return the number of values of a head: head_dim, or else the heads share hidden_size."""
    hidden_size, n_heads = _size(keys, "hidden_size"), _size(keys, "num_attention_heads")
    if not keys.has("head_dim") and hidden_size % n_heads:
        raise SourceError(f"config.json: hidden_size {hidden_size} isn't a multiple of num_attention_heads {n_heads}")
    return _size(keys, "head_dim", hidden_size // n_heads)


def _size(keys: Settings, key: str, default: int | None = None) -> int:
    return keys.integer(key, default, most=MOST_IN_A_ROW)


def rope_options(keys: Settings) -> Settings:
    """Merge `rope_parameters` (transformers 5) with `rope_scaling` (transformers 4)."""
    merged = {**keys.object(SCALING), **keys.object(PARAMETERS)}
    if keys.has(ORIGINAL_LENGTH):  # transformers prefers it to the same key among the options
        merged[ORIGINAL_LENGTH] = keys[ORIGINAL_LENGTH]
    return Settings(FILE, merged, PARAMETERS if keys.has(PARAMETERS) else SCALING)


def read_rope(keys: Settings) -> RopeConfig:
    """Read the rotation; raise UnsupportedError where layer types have parameters of their own."""
    options = rope_options(keys)
    for key, value in options.items():
        if isinstance(value, dict):
            raise UnsupportedError(
                f"{options.name(key)} holds parameters of its own, as for one layer type; llama.cpp's graph rotates "
                "every layer the same way"
            )
    theta = options.number("rope_theta") if options.has("rope_theta") else keys.number("rope_theta", 10000.0)
    return RopeConfig(options.text("rope_type") or options.text("type") or "default", theta, options)


def _rotated_size(keys: Settings, rope: RopeConfig, head_dim: int, abilities: frozenset[Ability]) -> int:
    """Return how many values of a head are rotated; raise UnsupportedError unless all are or the graph can rotate some.

    As in transformers, the key among the rope parameters comes first, and int() rounds.
    """
    keys = rope.options if rope.options.has("partial_rotary_factor") else keys
    if (partial := keys.number("partial_rotary_factor", 1.0)) == 1:
        return head_dim
    if Ability.PARTIAL_ROTATION not in abilities:
        raise UnsupportedError(
            f"{keys.name('partial_rotary_factor')} is {partial:g}, but the graph rotates whole heads"
        )
    rotated = int(head_dim * partial)
    if not 2 <= rotated <= head_dim or rotated % 2:
        raise UnsupportedError(
            f"{keys.name('partial_rotary_factor')} is {partial:g}, {rotated} of a head's {head_dim} values; expected "
            "an even number of them"
        )
    return rotated


def _sliding_window(keys: Settings) -> int | None:
    """Return the window in tokens, None where no layer slides: layer_types decides, else use_sliding_window."""
    layer_types = keys.texts("layer_types")
    slides = keys.flag("use_sliding_window") if layer_types is None else "sliding_attention" in layer_types
    return keys.integer("sliding_window") if slides and keys.has("sliding_window") else None


def _require_plain_decoder(config: DecoderConfig, activations: tuple[str, ...]) -> None:
    """Raise UnsupportedError where config.json asks for arithmetic that the graph doesn't compute."""
    if key := _hadamard_key(config.raw):
        raise UnsupportedError(
            f"config.json: {key} says that the weights are in a Hadamard basis (as in Bonsai 2); no graph of llama.cpp "
            "transforms the activations into that basis"
        )
    _require_no_fake_quantizer(config.raw)
    key = "hidden_activation" if config.raw.has("hidden_activation") else "hidden_act"  # Gemma's key comes first
    activation = config.raw.get(key, activations[0])
    if activation not in activations:
        raise UnsupportedError(f"config.json: {key} is {shown(activation)}, but the graph computes {activations[0]}")
    _require_head_sizes(config)


def _require_no_fake_quantizer(keys: Settings) -> None:
    """Raise UnsupportedError for BitCPM-CANN's unquantized models: code in modeling.py rounds their weights.

    https://huggingface.co/openbmb/BitCPM-CANN-1B-unquantized
    """
    code = keys.object("auto_map").get("AutoModelForCausalLM")
    if isinstance(code, str) and code.startswith("modeling."):
        raise UnsupportedError(
            "config.json: auto_map runs the model by the folder's own modeling.py, which ternarizes the weights of "
            "BitCPM-CANN's unquantized models; convert the pseudo-quantized model, or remove auto_map where that code "
            "computes what the class in transformers does"
        )


def _require_head_sizes(config: DecoderConfig) -> None:
    """Raise UnsupportedError where heads are odd, SourceError where all of them together are larger than any model."""
    n_heads, head_dim = config.n_heads, config.head_dim
    derived = "" if config.raw.has("head_dim") else ", which is hidden_size / num_attention_heads,"
    if head_dim % 2:
        raise UnsupportedError(f"config.json: head_dim {head_dim}{derived} is odd, but rotary embeddings pair values")
    if config.query_size > MOST_IN_A_ROW:
        raise SourceError(
            f"config.json: num_attention_heads {n_heads} times head_dim {head_dim} must be at most {MOST_IN_A_ROW}"
        )


def _hadamard_key(config: Mapping[str, Any]) -> str | None:
    """Return the first key, at any depth, that has "hadamard" in its name and isn't false or null."""
    for key, value in config.items():
        if "hadamard" in key.lower() and value not in (False, None):
            return shown_key(key)
        if isinstance(value, dict) and (found := _hadamard_key(value)):
            return f"{shown_key(key)}.{found}"
    return None

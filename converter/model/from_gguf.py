"""Turn a GGUF file of a known architecture back into what a Hugging Face folder holds: config.json and named tensors.

config.json is made of the file's keys, and then checked by the way there: the architecture reads it, and must ask for
exactly the keys and tensors that the file has. So a setting that isn't understood stops the way back, instead of
getting lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import Keys

from tritgguf.converter.core.settings import Settings
from tritgguf.converter.core.stacks import Stack
from tritgguf.converter.core.tensors import ByteArray, Float32Array, RowIndices, SourceTensor, row_numbers
from tritgguf.converter.errors import SourceError, TritggufError, UnsupportedError
from tritgguf.converter.gguf_io.gguf_tensor import GgufTensor
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.architecture import Architecture, TensorSpec, architectures, stored_specs
from tritgguf.converter.model.config import SCALING, DecoderConfig
from tritgguf.converter.model.gguf_keys import ArchitectureKeys, architecture_keys
from tritgguf.converter.model.match import assembled_tensors
from tritgguf.converter.model.rope import LONGROPE_SETS, ROPE_FREQS
from tritgguf.converter.model.rope_from_gguf import rope_candidates, shortest
from tritgguf.converter.model.stored_forms import SomeRows

# Keys that say what tensors or other keys say as well, that config.json has as they are, or that no graph here reads.
UNREAD = (
    "vocab_size",
    "context_length",
    "attention.key_length",
    "attention.value_length",
    "attention.causal",
    "rope.scaling.original_context_length",
    "full_attention_interval",
)


@dataclass(frozen=True)
class FoundModel:
    """A GGUF file as a Hugging Face model: config.json, and the tensors as checkpoints have them, by their names.

    `notes` tell where the tensors can't be what the file's were made of.
    """

    file: GgufFile
    config: dict[str, Any]
    specs: list[TensorSpec]
    tensors: Mapping[str, SourceTensor]
    notes: list[str]


@dataclass(frozen=True)
class HfTensor(SourceTensor):
    """A GGUF tensor in transformers' order of rows, times `factor`, the value of its `.scale` tensor, less `plus`.

    Row i of it is row `places[i]` of the file's; a one-dimensional tensor's values are ordered so.
    """

    name: str
    shape: tuple[int, ...]
    stored: SourceTensor
    places: RowIndices | None
    factor: float = 1.0
    plus: float = 0.0

    @property
    def dtype(self) -> str:  # type: ignore[override]
        return self.stored.dtype

    @property
    def n_bytes(self) -> int:
        return self.stored.n_bytes

    def read(self, rows: slice | RowIndices) -> Float32Array:
        if self.places is None:
            found = self.stored.read(rows)
        elif len(self.shape) == 1:
            found = self.stored.read(rows)[:, self.places]
        else:
            found = self.stored.read(self.places[row_numbers(rows, self.shape[0])])
        scaled = found if self.factor == 1 else found * np.float32(self.factor)
        return scaled - np.float32(self.plus) if self.plus else scaled

    def on_disk(self, rows: slice | RowIndices) -> list[ByteArray]:
        if self.places is None or len(self.shape) == 1:
            return self.stored.on_disk(rows)
        return self.stored.on_disk(self.places[row_numbers(rows, self.shape[0])])


def model_from_gguf(path: Path, *, values: bool = True) -> FoundModel:
    """Read a GGUF file as a Hugging Face model; raise UnsupportedError where it can't be expressed as one.

    `values` False says that nothing of it is here but its header and what frequencies are divided by: the tensors then
    have the right shapes and types.
    """
    file = read_gguf(path)
    file.stock_tensors()  # raises UnsupportedError for what must be converted first
    known = [architecture for architecture in architectures() if architecture.name == file.architecture]
    if not known:
        names = ", ".join(sorted({architecture.name for architecture in architectures()}))
        raise UnsupportedError(
            f"{path.name}: the way back to a Hugging Face folder isn't known for architecture {file.architecture}; "
            f"known are {names}"
        )
    failures, found = [], architecture_keys(file)
    for architecture in known:
        for rope in rope_candidates(found.keys, _divisors(file)):
            try:
                return _as_described(file, found, architecture, rope, values)
            except TritggufError as error:
                failures.append(error)
    raise failures[0]


def _as_described(
    file: GgufFile, found: ArchitectureKeys, architecture: Architecture, rope: Mapping[str, Any], values: bool
) -> FoundModel:
    """Return the file as config.json with this rotation describes it; raise TritggufError where the two differ."""
    raw = _rotated(_config_json(file, architecture, found.keys), rope)
    config = architecture.read_config(raw)
    specs = architecture.tensors(config)
    _require_same_keys(file, found.keys, architecture.metadata(config))
    stored = file.stock_tensors()
    left_out = [name for name in stored if found.guesses(name)]
    used = {name: tensor for name, tensor in stored.items() if not found.guesses(name)}
    tensors = _in_checkpoint(specs, _matched(file, used, specs, config, values))
    notes = _differences(file, specs, tensors) if values else []
    if left_out:
        notes.append(f"{len(left_out)} tensors such as {left_out[0]} are left out: the model computes without them")
    return FoundModel(file, raw, stored_specs(specs), tensors, notes)


def _rotated(config: dict[str, Any], rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json with what a candidate says of the rotation; the architecture may have said more of it."""
    merged = {**config, **rope}
    if SCALING in config and SCALING in rope:
        merged[SCALING] = {**config[SCALING], **rope[SCALING]}
    return merged


def _config_json(file: GgufFile, architecture: Architecture, keys: Settings) -> dict[str, Any]:
    """Return the config.json that should make this file, without the rotation; the caller checks that it does."""
    hidden, n_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    embeddings = file.tensors.get("token_embd.weight")
    if embeddings is None:
        raise SourceError(f"{file.path.name} has no token_embd.weight: it isn't a model, or it is damaged")
    name = next(iter(architecture.classes))
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": architecture.model_type or name.removesuffix("ForCausalLM").lower(),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("feed_forward_length"),
        "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": n_heads,
        "num_key_value_heads": keys.integer("attention.head_count_kv", n_heads),
        "head_dim": keys.integer("attention.key_length", hidden // n_heads),
        "vocab_size": embeddings.shape[0],
        "max_position_embeddings": keys.integer("context_length"),
        "rms_norm_eps": shortest(keys.number("attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": architecture.activations[0],
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        **architecture.settings(keys),
    }
    if keys.has("attention.sliding_window"):
        config |= {"sliding_window": keys.integer("attention.sliding_window"), "use_sliding_window": True}
    else:
        config |= {"sliding_window": None}
    return config | _token_ids(file)


def _divisors(file: GgufFile) -> dict[str, Float32Array]:
    """Return the tensors that frequencies are divided by, by their names."""
    names = [name for name in (ROPE_FREQS, *LONGROPE_SETS.values()) if name in file.tensors]
    return {name: file.tensors[name].read(slice(None)).reshape(-1) for name in names}


def _token_ids(file: GgufFile) -> dict[str, Any]:
    """Return the ids of config.json; eos is a list where generation ends at several tokens."""
    ids = {
        name: file.value(key)
        for name, key in (
            ("bos", Keys.Tokenizer.BOS_ID),
            ("eos", Keys.Tokenizer.EOS_ID),
            ("pad", Keys.Tokenizer.PAD_ID),
        )
    }
    return {f"{name}_token_id": token_id for name, token_id in ids.items() if isinstance(token_id, int)}


def _require_same_keys(file: GgufFile, keys: Settings, expected: Metadata) -> None:
    """Raise UnsupportedError where a key of the file isn't what config.json becomes on the way there."""
    for name, value in keys.items():
        key = f"{file.architecture}.{name}"
        if name in UNREAD:
            continue
        if key not in expected:
            raise UnsupportedError(
                f"{file.path.name}: {key} is {value!r:.80}, which no key of config.json is known to mean: the folder "
                "would describe another model"
            )
        if not _same(value, expected[key].data):
            raise UnsupportedError(
                f"{file.path.name}: {key} is {value!r:.80}, but no config.json that is known here gives that: the "
                f"nearest gives {expected[key].data!r:.80}"
            )


def _same(found: object, expected: object) -> bool:
    if isinstance(found, float) and isinstance(expected, float):
        return bool(np.float32(found) == np.float32(expected))
    return found == expected


def _matched(
    file: GgufFile, unused: dict[str, GgufTensor], specs: list[TensorSpec], config: DecoderConfig, values: bool
) -> dict[str, SourceTensor]:
    """Return the file's tensors in transformers' order of rows, by `TensorSpec.source`.

    Raises SourceError or UnsupportedError where one is missing or surplus.
    """
    matched: dict[str, SourceTensor] = {}
    for spec in specs:
        stored = unused.pop(spec.name, None)
        if spec.data is not None:
            if stored is None or not np.array_equal(stored.read(slice(None)).reshape(-1), spec.data.reshape(-1)):
                raise UnsupportedError(
                    f"{file.path.name}: {spec.name} isn't what a config.json that is known here gives"
                )
            continue
        if stored is None or stored.shape != spec.shape:
            found = "has no" if stored is None else f"has the shape {stored.shape} for"
            raise SourceError(
                f"{file.path.name} {found} {spec.name}; expected {spec.shape}: it is another architecture"
            )
        scale = unused.pop(spec.name.removesuffix(".weight") + ".scale", None) if spec.role == "linear" else None
        matched[spec.source] = _with_rows_of_transformers(spec, stored, scale if values else None)
    if unused:
        raise UnsupportedError(
            f"{file.path.name} holds {min(unused)}, which {config.graph} has no place for in a checkpoint "
            f"({len(unused)} such tensors)"
        )
    return matched


def _with_rows_of_transformers(spec: TensorSpec, stored: GgufTensor, scale: GgufTensor | None) -> SourceTensor:
    """Return a tensor without its spec's `plus` and `rows`; `scale` has one value for each of its matrices."""
    matrices = stored.matrices()
    factors = [1.0] * len(matrices) if scale is None else scale.read(slice(None)).reshape(-1).tolist()
    if len(factors) != len(matrices):
        raise SourceError(f"{stored.file.name}: {spec.name} has {len(factors)} scales; expected {len(matrices)}")
    places = None if spec.rows is None else np.argsort(spec.rows)
    parts = [
        HfTensor(spec.source, matrix.shape, matrix, places, factor, spec.plus)
        for matrix, factor in zip(matrices, factors, strict=True)
    ]
    return parts[0] if len(parts) == 1 else Stack.of(spec.source, parts)


def _in_checkpoint(specs: Sequence[TensorSpec], found: Mapping[str, SourceTensor]) -> dict[str, SourceTensor]:
    """Return the tensors as checkpoints have them, by their names: the way back of match.py's `assembled_tensors`."""
    undone: dict[str, SourceTensor] = {}
    parts: dict[str, list[tuple[SomeRows, SourceTensor]]] = {}
    for spec in (spec for spec in specs if spec.data is None):
        form, tensor = spec.forms[0], found[spec.source]
        tensor = spec.derive.undone(tensor) if spec.derive else tensor
        if isinstance(form, SomeRows):
            parts.setdefault(form.stored_name, []).append((form, tensor))
        else:
            undone[spec.source] = tensor
    return undone | {name: SomeRows.together(name, some) for name, some in parts.items()}


def _differences(file: GgufFile, specs: Sequence[TensorSpec], tensors: Mapping[str, SourceTensor]) -> list[str]:
    """Return a note on the vectors whose values no float of a checkpoint gives again on the way there."""
    wrong, worst = 0, 0.0
    names: list[str] = []
    for spec in (spec for spec in specs if len(spec.shape) == 1 and (spec.plus or spec.derive)):
        expected = file.tensors[spec.name].read(slice(None))
        again = assembled_tensors([spec], tensors)[spec.source].read(slice(None))
        again = again if spec.rows is None else again[:, spec.rows]
        if n_wrong := np.count_nonzero(again != expected):
            wrong, names = wrong + n_wrong, [*names, spec.name]
            worst = max(worst, float(np.abs(again - expected).max() / np.abs(expected).max()))
    if not wrong:
        return []
    return [
        f"{wrong} values of {len(names)} tensors such as {names[0]} are made of no float32 value exactly: those of the "
        f"folder give them up to {worst:.1e} of the tensor's largest"
    ]

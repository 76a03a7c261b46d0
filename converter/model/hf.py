"""Open a Hugging Face folder as a model to convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gguf import Keys

from tritgguf.converter.checkpoint.adapter import Adapter, open_adapter
from tritgguf.converter.checkpoint.config_json import read_config_json
from tritgguf.converter.checkpoint.folder import Checkpoint, open_checkpoint
from tritgguf.converter.core.dtypes import FLOAT_DTYPES
from tritgguf.converter.core.system import trim_memory
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.errors import SourceError, UnsupportedError
from tritgguf.converter.gguf_io.metadata import Metadata, joined, string
from tritgguf.converter.model.architecture import TensorSpec, architecture_for, linear_names
from tritgguf.converter.model.card_metadata import card_metadata, loadable_name, model_name
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.description import counted
from tritgguf.converter.model.hyperparameters import context_length
from tritgguf.converter.model.match import assembled_tensors, needed_tensors
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.rope import original_length, trained_length
from tritgguf.converter.quant.grids import prefetch_first_rows
from tritgguf.converter.tokenizer import has_tokenizer, read_tokenizer


class _Tensors(NamedTuple):
    """The tensors that the graph needs, with an adapter merged, None without weights; those that it changes without."""

    tensors: Mapping[str, SourceTensor] | None
    unmerged: Mapping[str, SourceTensor]
    notes: list[str]


def open_hf_model(folder: Path, *, load_tokenizer: bool = True, lora: Path | None = None) -> Model:
    """Open a Hugging Face folder; raise SourceError, UnsupportedError or TokenizerError where it can't be converted.

    With `load_tokenizer` the reference tokenizer is loaded here, else when it first encodes. `lora` is the folder of an
    adapter to merge.
    """
    raw = read_config_json(folder)
    architecture = architecture_for(raw)
    config = architecture.read_config(raw)
    specs = architecture.tensors(config)
    checkpoint = open_checkpoint(folder, linear_names(specs))
    for tensor in checkpoint.tensors.values() if checkpoint.tensors else ():
        prefetch_first_rows(tensor)
    notes = _context_notes(config)
    tokenizer = None
    if checkpoint.tensors is not None or has_tokenizer(folder):
        tokenizer = read_tokenizer(folder, n_vocab=config.vocab_size, config=raw, load=load_tokenizer)
        trim_memory()  # parsing a large vocabulary takes about a hundred megabytes
        notes += tokenizer.notes
    else:
        notes.append("the folder has no tokenizer: its bytes aren't counted")
    needed = _needed_tensors(checkpoint, specs, config, lora)
    notes += needed.notes
    card, card_notes = card_metadata(folder, raw, counted(specs))
    notes += card_notes
    name = loadable_name(model_name(folder), tokenizer.special_tokens if tokenizer else ())
    general: Metadata = {Keys.General.TYPE: string("model"), Keys.General.NAME: string(name), **card}
    metadata = joined(architecture.metadata(config), general, tokenizer.metadata if tokenizer else {})
    return Model(
        path=folder,
        source=checkpoint.packing,
        specs=specs,
        tensors=needed.tensors,
        metadata=metadata,
        tokenizer=tokenizer,
        notes=notes,
        scale_tensors=architecture.honours_scales,
        targets=architecture.targets,
        unmerged=needed.unmerged,
    )


def _needed_tensors(
    checkpoint: Checkpoint, specs: Sequence[TensorSpec], config: DecoderConfig, lora: Path | None
) -> _Tensors:
    if checkpoint.tensors is None:
        if lora is not None:
            raise SourceError(f"{checkpoint.folder} holds no weights, so there is nothing to merge an adapter into")
        return _Tensors(None, {}, _notes_without_values(checkpoint, specs, config))
    stored, notes = needed_tensors(specs, checkpoint.tensors, config)
    if lora is None:
        return _Tensors(assembled_tensors(specs, stored), {}, notes)
    adapter = open_adapter(lora)
    _refuse_untying(adapter, specs, config)
    # Adapters change the checkpoint's tensors, of which the graph's are made: several, reordered or shifted.
    merged = assembled_tensors(specs, adapter.merged(stored))
    changed = [spec for spec in specs if not adapter.changed.isdisjoint(spec.names)]
    return _Tensors(merged, assembled_tensors(changed, stored), [*notes, adapter.note])


def _notes_without_values(checkpoint: Checkpoint, specs: Sequence[TensorSpec], config: DecoderConfig) -> list[str]:
    """Return the notes on a model without weights; where there are headers, check them as far as they tell."""
    unknown = "which tensors the type holds exactly isn't known"
    if checkpoint.described is None:
        return [f"the folder has no weights: {unknown}"]
    # A packing's own tensors become the graph's only when they are read.
    plain = all(tensor.dtype in FLOAT_DTYPES for tensor in checkpoint.described.values())
    notes = needed_tensors(specs, checkpoint.described, config)[1] if plain else []
    return [*notes, f"planned from the headers of the weights alone: {unknown}"]


def _refuse_untying(adapter: Adapter, specs: Sequence[TensorSpec], config: DecoderConfig) -> None:
    """Raise UnsupportedError where the adapter changes embeddings that are the output layer's weights too."""
    embeddings = next((spec.source for spec in specs if spec.role == "embedding"), "")
    if embeddings in adapter.changed and not any(spec.role == "output" for spec in specs):
        raise UnsupportedError(
            f"{adapter.folder}: the adapter changes {embeddings}, which config.json ties the output layer to "
            f"({config.graph} graph); PEFT changes one of the two alone: save the merged model untied "
            "(tie_word_embeddings false) and convert that"
        )


def _context_notes(config: DecoderConfig) -> list[str]:
    length, trained = context_length(config), trained_length(config)
    if length < trained:
        return [
            f"context length {length} instead of {trained}: beyond its sliding window of {length} tokens, llama.cpp's "
            "graph would attend to more tokens than the model does"
        ]
    if config.rope.kind == "longrope" and trained > (original := int(original_length(config))):
        return [
            f"in contexts of more than {original} tokens, llama.cpp's graph uses LongRoPE's long factors for every "
            "text; transformers uses the short ones for texts up to that length"
        ]
    if length < config.max_positions:
        return [
            f"context length {length} instead of {config.max_positions}: beyond it {config.rope.kind} changes its "
            "frequencies with the number of tokens, which a file can't express"
        ]
    return []

"""Open a Hugging Face folder as a model to convert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf import Keys

from tritgguf.converter.checkpoint.config_json import read_config_json
from tritgguf.converter.checkpoint.folder import open_checkpoint
from tritgguf.converter.core.system import trim_memory
from tritgguf.converter.core.tensors import SourceTensor
from tritgguf.converter.gguf_io.metadata import Metadata, joined, string
from tritgguf.converter.model.architecture import architecture_for, linear_names
from tritgguf.converter.model.card_metadata import card_metadata, loadable_name, model_name
from tritgguf.converter.model.config import DecoderConfig
from tritgguf.converter.model.hyperparameters import context_length
from tritgguf.converter.model.match import match_tensors
from tritgguf.converter.model.model import Model
from tritgguf.converter.model.rope import original_length, trained_length
from tritgguf.converter.quant.grids import prefetch_first_rows
from tritgguf.converter.tokenizer import has_tokenizer, read_tokenizer


def open_hf_model(folder: Path, *, load_tokenizer: bool = True) -> Model:
    """Open a Hugging Face folder; raise SourceError, UnsupportedError or TokenizerError where it can't be converted.

    With `load_tokenizer` the reference tokenizer is loaded here, else when it first encodes.
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
    tensors: Mapping[str, SourceTensor] | None = None
    if checkpoint.tensors is None:
        notes.append("the folder has no weights: which tensors the type holds exactly isn't known")
    else:
        tensors, left_out = match_tensors(specs, checkpoint.tensors, config)
        notes += left_out
    card, card_notes = card_metadata(folder)
    notes += card_notes
    name = loadable_name(model_name(folder), tokenizer.special_tokens if tokenizer else ())
    general: Metadata = {Keys.General.TYPE: string("model"), Keys.General.NAME: string(name), **card}
    metadata = joined(architecture.metadata(config), general, tokenizer.metadata if tokenizer else {})
    return Model(
        path=folder,
        source=checkpoint.packing,
        specs=specs,
        tensors=tensors,
        metadata=metadata,
        tokenizer=tokenizer,
        notes=notes,
        scale_tensors=architecture.honours_scales,
        targets=architecture.targets,
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

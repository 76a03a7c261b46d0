"""Keys that bitnet.cpp's GGUF files of BitNet b1.58 2B-4T lack for llama.cpp, or have under another name."""

from __future__ import annotations

from dataclasses import dataclass

from gguf import Keys

from tritgguf.converter.gguf_io.metadata import Metadata, string
from tritgguf.converter.model.arch.bitnet_2b4t import ARCHITECTURE

OLDER_NAME = "bitnet-25"
PRE_TOKENIZER = "llama-bpe"  # that of Llama 3, whose vocabulary the model has


@dataclass(frozen=True)
class Repair:
    """Keys to convert with, notes on what was changed, and whether the vocabulary's keys were."""

    metadata: Metadata
    notes: tuple[str, ...] = ()
    vocabulary: bool = False


def repaired(metadata: Metadata) -> Repair:
    """Return the keys of a GGUF file, those of 2B-4T as this package writes them.

    Other programs must refuse such a file by its architecture, and tritgguf's runtime loads it by a second set of
    hyperparameters: see arch/bitnet_2b4t.py.
    """
    found = metadata[Keys.General.ARCHITECTURE].data
    if found not in (ARCHITECTURE.name, OLDER_NAME):
        return Repair(metadata)
    keys, notes = dict(metadata), []
    keys[Keys.General.ARCHITECTURE] = string(ARCHITECTURE.name)
    for key, value in metadata.items():
        if key.startswith(f"{found}."):
            if found == OLDER_NAME:
                del keys[key]
            for name in (ARCHITECTURE.name, ARCHITECTURE.graph_name):
                keys.setdefault(name + key.removeprefix(str(found)), value)
    if keys.keys() != metadata.keys():
        notes.append(
            f"the hyperparameters of {found} are written as {ARCHITECTURE.name} and {ARCHITECTURE.graph_name}: "
            "tritgguf's runtime needs both"
        )
    vocabulary = Keys.Tokenizer.PRE not in keys and _is_byte_level(keys)
    if vocabulary:
        keys[Keys.Tokenizer.PRE] = string(PRE_TOKENIZER)
        notes.append(
            f"{Keys.Tokenizer.PRE} is missing: added as {PRE_TOKENIZER}, which the model was trained with; token ids "
            "can't be compared"
        )
    return Repair(keys, tuple(notes), vocabulary)


def _is_byte_level(metadata: Metadata) -> bool:
    return Keys.Tokenizer.MODEL in metadata and metadata[Keys.Tokenizer.MODEL].data == "gpt2"

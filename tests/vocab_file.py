"""A GGUF file with a vocabulary and no tensors, which is all that llama.cpp needs to tokenize."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter

from tritgguf.converter.gguf_io.metadata import Metadata


def write_vocab_file(path: Path, metadata: Metadata) -> Path:
    """Write `metadata` under the llama architecture; for the vocabulary alone llama.cpp reads nothing else."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key, value.data, value.type, value.element)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path

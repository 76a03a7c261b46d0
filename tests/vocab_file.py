"""A GGUF file with a vocabulary and no tensors, which is all that llama.cpp needs to tokenize."""

from __future__ import annotations

from pathlib import Path

from gguf import GGUFWriter

from tests.token_ids import token_ids_in_this_process
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.tokenizer import SourceTokenizer, check_token_ids
from tritgguf.runtime.engine.token_ids_process import token_ids_process


def write_vocab_file(path: Path, metadata: Metadata) -> Path:
    """Write `metadata` under the llama architecture; for the vocabulary alone llama.cpp reads nothing else."""
    writer = GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_key_value(key, value.data, value.type, value.element)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def check_in_runtime(tokenizer: SourceTokenizer, file: Path) -> int:
    """Compare the file's token ids in the runtime with the source's, as a conversion does."""
    with token_ids_process() as read:
        return check_token_ids(tokenizer, file, read)


def check_in_this_process(tokenizer: SourceTokenizer, file: Path) -> int:
    """The same without a child process, for files that are sure not to end the process that loads them."""
    with token_ids_in_this_process() as read:
        return check_token_ids(tokenizer, file, read)

"""Token ids of texts, in a process of its own: `python -m tritgguf.runtime.engine.token_ids [FOLDER]`.

`{"file": "model.gguf", "texts": [...]}` on standard input becomes `{"ids": [[...], ...], "expected": [[...], ...]}` on
standard output: special tokens are parsed, BOS and EOS are added as to a prompt. "expected" are the ids by the
tokenizer.json in FOLDER, which is loaded before standard input is read; null without FOLDER, or where it can't be
loaded. Only the file's vocabulary is loaded, so its tensor data need not be written yet. This is a process of its own
because llama.cpp ends its process on some damaged vocabularies.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritgguf.converter.errors import EngineError, TokenizerError, TritggufError
from tritgguf.converter.tokenizer.reference import Reference
from tritgguf.runtime.engine.backend import Model, exit_on_native_abort
from tritgguf.runtime.engine.gguf_header import read_header, vocabulary_only


def token_ids(path: str | os.PathLike[str], texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text as a prompt by the GGUF file's tokenizer; EngineError if that can't be loaded."""
    header = read_header(Path(path))
    with _readable(vocabulary_only(Path(path), header)) as copy:
        try:
            with Model(copy, vocab_only=True, header=header) as model:
                return [model.vocab.tokenize(text, special=True, add_special=True) for text in texts]
        except EngineError as error:
            raise EngineError(str(error).replace(str(copy), str(path))) from error


@contextmanager
def _readable(content: bytes) -> Iterator[Path]:
    """Yield a path of a file with that content: on Linux in memory, since a killed process leaves other files."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("vocabulary.gguf"), "wb", buffering=0) as file:
            file.write(content)
            yield Path(f"/proc/self/fd/{file.fileno()}")
        return
    with tempfile.TemporaryDirectory(prefix="tritgguf-") as folder:
        copy = Path(folder) / "vocabulary.gguf"
        copy.write_bytes(content)
        yield copy


def main() -> int:
    """Return exit code 0 after JSON on standard output, or 1 after one line on standard error."""
    exit_on_native_abort()
    gc.disable()  # a vocabulary is many objects without reference cycles
    try:
        reference = _reference(Path(sys.argv[1])) if len(sys.argv) > 1 else None
        file, texts = _asked(sys.stdin.buffer.read())
        expected = [reference(text, add_special_tokens=True) for text in texts] if reference else None
        del reference  # frees its memory for the native library
        json.dump({"ids": token_ids(file, texts), "expected": expected}, sys.stdout)
    except TritggufError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n")
    return 0


def _reference(folder: Path) -> Reference | None:
    reference = Reference(folder)
    try:
        reference.load()
    except TokenizerError:  # the process that asks loads it too, and raises this
        return None
    return reference


def _asked(data: bytes) -> tuple[str, list[str]]:
    try:
        asked = json.loads(data)
        file, texts = asked["file"], asked["texts"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"standard input isn't the expected JSON: {error!r}") from error
    if not isinstance(file, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise EngineError("standard input names no file, or its texts aren't strings")
    return file, texts


if __name__ == "__main__":
    sys.exit(main())

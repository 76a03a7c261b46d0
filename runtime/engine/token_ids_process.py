"""Token ids from a child process: what the converter's check is given.

A child, because the native library ends its process on some damaged vocabularies, and because the child can load the
source's tokenizer, which holds Python's lock, while this process converts.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIds
from tritgguf.runtime.engine import child_process

_COMMAND = child_process.command("tritgguf.runtime.engine.token_ids")


@contextmanager
def token_ids_process(folder: Path | None = None) -> Iterator[ReadTokenIds]:
    """Start the child and yield what asks it for the ids of one file; kill it at the end.

    Where `folder`, which holds a tokenizer.json, is given, the child loads that meanwhile and returns its ids too.
    """
    pipe, command = subprocess.PIPE, _COMMAND if folder is None else (*_COMMAND, str(folder))
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=child_process.environment())
    try:
        yield lambda gguf_file, texts: _ask(child, gguf_file, texts)
    finally:
        child.kill()
        child.communicate()


def _ask(child: subprocess.Popen[bytes], gguf_file: Path, texts: Sequence[str]) -> TokenIds:
    out, err = child.communicate(json.dumps({"file": str(gguf_file), "texts": texts}).encode())
    if child.returncode != 0:
        lines = err.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {child.returncode}"
        reason = reason.removeprefix("error: ").removeprefix(f"{gguf_file}: ")
        raise TokenizerError(f"the runtime can't read the vocabulary back: {reason}; --no-check writes the file anyway")
    try:
        answer = json.loads(out)
        ids = TokenIds(answer["ids"], answer["expected"])
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(f"the runtime's token ids aren't the expected JSON: {error}") from error
    if len(ids.found) != len(texts):
        raise TokenizerError(f"the runtime gave ids for {len(ids.found)} texts; expected {len(texts)}")
    return ids

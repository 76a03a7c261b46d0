"""Token ids from a child process: what the converter's check is given.

A child, because the native library ends its process on some damaged vocabularies, and because the child can load the
source's tokenizer, which holds Python's lock, while this process converts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.token_ids import ReadTokenIds, TokenIds

# `-m` would let the child import modules from the current folder, which may be a downloaded model's: its json.py would
# run. `-c` puts the folder on sys.path too, as "", but imports nothing before this removes it. `-P` does the same from
# Python 3.11 on; `-I` would hide what was installed with `pip install --user`.
_COMMAND = (
    sys.executable,
    "-c",
    "import sys; sys.path[:] = filter(None, sys.path); "
    "from tritgguf.runtime.engine.token_ids import main; sys.exit(main())",
)


@contextmanager
def token_ids_process(folder: Path | None = None) -> Iterator[ReadTokenIds]:
    """Start the child and yield what asks it for the ids of one file; kill it at the end.

    Where `folder`, which holds a tokenizer.json, is given, the child loads that meanwhile and returns its ids too.
    """
    pipe, command = subprocess.PIPE, _COMMAND if folder is None else (*_COMMAND, str(folder))
    # Numpy's BLAS, of no use here, would keep a thread per core busy while it starts.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if path := environment.get("PYTHONPATH"):  # in which an empty part is the current folder too, often by mistake
        environment["PYTHONPATH"] = os.pathsep.join(part for part in path.split(os.pathsep) if part not in ("", "."))
    child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
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

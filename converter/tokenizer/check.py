"""The proof: token ids of a written GGUF file in the runtime against the source tokenizer's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from typing_extensions import Self

from tritgguf.converter.errors import TokenizerError
from tritgguf.converter.tokenizer.battery import battery
from tritgguf.converter.tokenizer.source import SourceTokenizer

# A child, because the converter never loads the runtime's library and a bad vocabulary makes that library abort.
_COMMAND = (sys.executable, "-m", "tritgguf.runtime.engine.token_ids")
_IDS_SHOWN = 8


class TokenIds(NamedTuple):
    """Ids of each text under a file's tokenizer, and under its source's, where the child had that to load."""

    found: list[list[int]]
    expected: list[list[int]] | None


class RuntimeProcess:
    """The runtime in a child process, which starts at once and gives the token ids of one file; kill it on leaving.

    It loads the reference of `folder`, which holds a tokenizer.json, while the file is made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        pipe, command = subprocess.PIPE, _COMMAND if folder is None else (*_COMMAND, str(folder))
        # Numpy's BLAS, of no use here, would keep a thread per core busy while it starts.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.communicate()

    def ids(self, gguf_file: Path, texts: Sequence[str]) -> TokenIds:
        """Return the ids of each text; TokenizerError where the runtime can't stand the file."""
        asked = {"file": str(gguf_file), "texts": texts}
        out, err = self.child.communicate(json.dumps(asked).encode())
        if self.child.returncode != 0:
            lines = err.decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"exit code {self.child.returncode}"
            reason = reason.removeprefix("error: ").removeprefix(f"{gguf_file}: ")
            raise TokenizerError(
                f"the runtime can't read the vocabulary back: {reason}; --no-check keeps the file all the same"
            )
        try:
            answer = json.loads(out)
            ids = TokenIds(answer["ids"], answer["expected"])
        except (ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"the runtime's token ids aren't the JSON that was expected: {error}") from error
        if len(ids.found) != len(texts):
            raise TokenizerError(f"the runtime gave ids for {len(ids.found)} texts; expected {len(texts)}")
        return ids


def check_token_ids(tokenizer: SourceTokenizer, gguf_file: Path, runtime: RuntimeProcess | None = None) -> int:
    """Compare token ids on the battery; return the number of texts, TokenizerError at the first difference."""
    texts = battery(tokenizer)
    with runtime or RuntimeProcess() as started:
        ids = started.ids(gguf_file, texts)
    if ids.found == ids.expected:
        return len(texts)
    for text, found in zip(texts, ids.found, strict=True):
        expected = tokenizer.encode(text)
        if found != expected:
            hint = f" ({tokenizer.hint})" if tokenizer.hint else ""
            raise TokenizerError(
                f"text {text!r:.100} becomes other token ids than in the source tokenizer: "
                f"{_difference(expected, found)}{hint}; --no-check keeps the file all the same"
            )
    return len(texts)


def _difference(expected: Sequence[int], found: Sequence[int]) -> str:
    same = 0
    while same < min(len(expected), len(found)) and expected[same] == found[same]:
        same += 1
    shown = slice(same, same + _IDS_SHOWN)
    return f"from place {same} on expected {list(expected[shown])}, found {list(found[shown])}"


def carried_tokenizer(gguf_file: Path) -> SourceTokenizer:
    """Return the tokenizer of a GGUF file as a source; it knows the ids of the battery, as the runtime gives them."""
    blank = SourceTokenizer("carried", {}, (), lambda _text: [])
    texts = battery(blank)
    with RuntimeProcess() as runtime:
        ids = dict(zip(texts, runtime.ids(gguf_file, texts).found, strict=True))
    return SourceTokenizer("carried", {}, (), ids.__getitem__)

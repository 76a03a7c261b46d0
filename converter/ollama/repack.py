"""Rewrite a GGUF file so that Ollama loads it: the same values in types that it takes, and the same keys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gguf import Keys

from tritgguf.converter.conversion.pipeline import Conversion, write_model
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.whole_files import require_writable
from tritgguf.converter.gguf_io.metadata import string
from tritgguf.converter.gguf_io.reader import GgufFile
from tritgguf.converter.model.gguf import open_gguf_model
from tritgguf.converter.model.model import Model
from tritgguf.converter.ollama.versions import refused_types
from tritgguf.converter.planning.file_plan import FilePlan
from tritgguf.converter.planning.make_plan import make_plan
from tritgguf.converter.planning.request import Request
from tritgguf.converter.planning.tensor_types import AUTO
from tritgguf.converter.tokenizer import TokenIdsProvider, installed_provider

# If a file's jinja is within an edit distance of 100 of one of the 37 that Ollama knows, Ollama uses its own Go
# template instead. Those have hardly any "~", so 160 of them put any template further away than that. The distance is
# at least the difference of the lengths: 36 of them have at most 1842 characters, one has 4614
# (https://github.com/ollama/ollama/blob/main/template/index.json).
_GUESSED_BELOW = 100
_LONGEST, _LONG = 1842, 4614
_GUARD_LETTERS = "~" * 160
GUARD = f"{{# Against guessing the template from its first letters: {_GUARD_LETTERS} #}}"


def refused(file: GgufFile) -> list[str]:
    """Return the file's tensor types that the newest Ollama refuses."""
    return refused_types({tensor.dtype for tensor in file.tensors.values()})


def guarded(jinja: str) -> str:
    """Return the template after a comment that stops Ollama from replacing it; unchanged if its length does that.

    The newline after the comment is not rendered (jinja's trim_blocks). It is needed because lstrip_blocks strips the
    template's first line only if that begins a line.
    """
    near = len(jinja) - _LONGEST < _GUESSED_BELOW or abs(len(jinja) - _LONG) < _GUESSED_BELOW
    return f"{GUARD}\n{jinja}" if near and not jinja.startswith(GUARD) else jinja


def repack_plan(path: Path, *, jinja: str | None = None, progress: Progress | None = None) -> FilePlan:
    """Return the plan of the file that `repack` would write; raise TritggufError if it can't be written."""
    return make_plan(_model(path, jinja), _request(), None, progress)


def repack(
    path: Path,
    out: Path,
    *,
    jinja: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    plan: FilePlan | None = None,
    token_ids: TokenIdsProvider | None = None,
) -> Conversion:
    """Write the file again with types that Ollama loads, and with the chat template `jinja` if it is given.

    `plan` is the result of `repack_plan`; without it the file is read once more to make one. `token_ids` computes the
    token ids of both files; by default the installed provider does.
    """
    require_writable(out, [out], force)
    provider = token_ids or installed_provider()
    opened = _model(path, jinja, provider)
    with provider(None) as read:
        return write_model(opened, out, _request(), force=force, check=read, progress=progress, file_plan=plan)


def _request() -> Request:
    return Request.named(AUTO, "mse", target="ollama")


def _model(path: Path, jinja: str | None, token_ids: TokenIdsProvider | None = None) -> Model:
    opened = open_gguf_model(path, token_ids)
    template = {} if jinja is None else {Keys.Tokenizer.CHAT_TEMPLATE: string(jinja)}
    return replace(opened, metadata={**opened.metadata, **template})

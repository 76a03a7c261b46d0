"""Calibration text: files become documents, documents token ids, and these chunks of 512."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import Keys

from tritgguf.converter.calibration.documents import documents
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.tokenizer import SourceTokenizer
from tritgguf.converter.tokenizer.template_budget import budget_for
from tritgguf.converter.tokenizer.template_keys import special_text
from tritgguf.converter.tokenizer.template_sandbox import template_environment

N_TOKENS = 512
DEFAULT_TEXT = Path(__file__).with_name("default_text.jsonl")
Chunks = npt.NDArray[np.int64]


def calibration_chunks(tokenizer: SourceTokenizer, calibration: Calibration) -> Chunks:
    """Return the chunks, token ids (n_chunks, 512), as many of each file as there are, in an order that the seed gives.

    Raises SourceError where a file can't be read or all together have too few tokens.
    """
    random = np.random.default_rng(calibration.seed)
    paths = calibration.texts or (DEFAULT_TEXT,)
    files = [_shuffled(_chunks(path, tokenizer), random) for path in paths]
    found = sum(len(file) for file in files)
    if found < calibration.n_chunks:
        raise SourceError(
            f"{', '.join(str(path) for path in paths)}: has {found} chunks of {N_TOKENS} of this model's tokens; "
            f"expected {calibration.n_chunks}: give more text (--calibration), or ask for fewer chunks "
            f"(--calibration-chunks {found})"
        )
    in_turn = [file[number] for number in range(max(map(len, files))) for file in files if number < len(file)]
    return np.stack(in_turn[: calibration.n_chunks])


def _shuffled(chunks: Chunks, random: np.random.Generator) -> Chunks:
    return chunks[random.permutation(len(chunks))]


def _chunks(path: Path, tokenizer: SourceTokenizer) -> Chunks:
    ids = [token for text in _texts(path, tokenizer.metadata) for token in tokenizer.encode(text)]
    n_chunks = len(ids) // N_TOKENS
    chunks = np.array(ids[: n_chunks * N_TOKENS], np.int64).reshape(n_chunks, N_TOKENS)
    bos = tokenizer.metadata.get(Keys.Tokenizer.BOS_ID)
    if bos is not None and (adds := tokenizer.metadata.get(Keys.Tokenizer.ADD_BOS)) is not None and adds.data:
        chunks[:, 0] = bos.data
    return chunks


def _texts(path: Path, metadata: Metadata) -> Iterator[str]:
    for document in documents(path):
        content = document.content
        yield content if isinstance(content, str) else _rendered(document.place, content, metadata)


def _rendered(place: str, messages: Sequence[Mapping[str, Any]], metadata: Metadata) -> str:
    """Return a conversation as the model's template writes it, without one as lines."""
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if template is None:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    specials = {"bos_token": Keys.Tokenizer.BOS_ID, "eos_token": Keys.Tokenizer.EOS_ID}
    variables = {name: special_text(metadata, key) for name, key in specials.items()}
    try:
        with budget_for([messages]):
            rendered: str = (
                template_environment()
                .from_string(str(template.data))
                .render(messages=[dict(message) for message in messages], add_generation_prompt=False, **variables)
            )
    except Exception as error:  # the template is a program from the file: it can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"{place}: the model's chat template refuses it ({reason:.200})") from error
    return rendered

"""Calibration text: files become documents, documents token ids, and these chunks of 512."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import Keys

from tritgguf.converter.calibration.documents import Message, documents
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.metadata import Metadata
from tritgguf.converter.planning.calibration import Calibration
from tritgguf.converter.tokenizer import SourceTokenizer
from tritgguf.converter.tokenizer.template_budget import budget_for
from tritgguf.converter.tokenizer.template_keys import special_text
from tritgguf.converter.tokenizer.template_sandbox import template_environment

N_TOKENS = 512
MEASURED_CHUNKS = 8  # decide whether what was tuned is kept
STEP_CHUNKS = 16  # in each step of tuning: with fewer tokens it does harm
DEFAULT_TEXT = Path(__file__).with_name("default_text.jsonl")
TODAY = datetime(2025, 7, 1, 12)  # for templates that write the date: the same text on any day
SOME = 8  # conversations that a template may refuse before it takes one
Chunks = npt.NDArray[np.int64]


def calibration_chunks(
    tokenizer: SourceTokenizer, calibration: Calibration, tell: Callable[[str], None] = lambda _line: None
) -> Chunks:
    """Return the chunks, token ids (n_chunks, 512), as many of each file as there are, in an order that the seed gives.

    `tell` gets a line for each file of which conversations are left out, since the model's template refuses them.
    Raises SourceError where a file can't be read or all together have too few tokens, for tuning too if it is asked.
    """
    return _in_turn(tokenizer, calibration, tell)[: calibration.n_chunks]


def tuning_chunks(tokenizer: SourceTokenizer, calibration: Calibration) -> tuple[Chunks, Chunks]:
    """Return chunks to tune on and chunks to measure on, of what `calibration_chunks` doesn't take of the same text."""
    rest = _in_turn(tokenizer, calibration, lambda _line: None)[calibration.n_chunks :]
    return rest[MEASURED_CHUNKS:][: (calibration.tune or 0) * STEP_CHUNKS], rest[:MEASURED_CHUNKS]


def _in_turn(tokenizer: SourceTokenizer, calibration: Calibration, tell: Callable[[str], None]) -> Chunks:
    random = np.random.default_rng(calibration.seed)
    paths = calibration.texts or (DEFAULT_TEXT,)
    files = [_shuffled(_chunks(path, tokenizer, tell), random) for path in paths]
    found, needed = sum(len(file) for file in files), calibration.n_chunks
    whose = ""
    if calibration.tune:
        whose = f", and --tune {MEASURED_CHUNKS} to measure on and at least {STEP_CHUNKS} others"
        needed += MEASURED_CHUNKS + STEP_CHUNKS
    if found < needed:
        fewer = found - needed + calibration.n_chunks
        ask = f", or ask for fewer chunks (--calibration-chunks {fewer})" if fewer > 1 else ""
        raise SourceError(
            f"{', '.join(str(path) for path in paths)}: has {found} chunks of {N_TOKENS} of this model's tokens; "
            f"expected {calibration.n_chunks}{whose}: give more text (--calibration){ask}"
        )
    in_turn = [file[number] for number in range(max(map(len, files))) for file in files if number < len(file)]
    return np.stack(in_turn)


def _shuffled(chunks: Chunks, random: np.random.Generator) -> Chunks:
    return chunks[random.permutation(len(chunks))]


def _chunks(path: Path, tokenizer: SourceTokenizer, tell: Callable[[str], None]) -> Chunks:
    ids = [token for text in texts(path, tokenizer.metadata, tell) for token in tokenizer.encode(text)]
    n_chunks = len(ids) // N_TOKENS
    chunks = np.array(ids[: n_chunks * N_TOKENS], np.int64).reshape(n_chunks, N_TOKENS)
    bos = tokenizer.metadata.get(Keys.Tokenizer.BOS_ID)
    if bos is not None and (adds := tokenizer.metadata.get(Keys.Tokenizer.ADD_BOS)) is not None and adds.data:
        chunks[:, 0] = bos.data
    return chunks


def texts(path: Path, metadata: Metadata, tell: Callable[[str], None]) -> Iterator[str]:
    """Yield a file's texts, and its conversations as the model's template writes them.

    Conversations that the template refuses, as some refuse one that the model begins, are left out, and `tell` gets how
    many; raises SourceError where they are most.
    """
    render, refusals, n_taken = _renderer(metadata), list[SourceError](), 0
    for document in documents(path):
        if isinstance(document.content, str):
            yield document.content
            continue
        try:
            rendered = render(document.content)
        except Exception as error:  # the template is a program from the file: it can raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            refusals.append(SourceError(f"{document.place}: the model's chat template refuses it ({reason:.200})"))
            if len(refusals) > n_taken + SOME:
                raise refusals[0] from error
            continue
        n_taken += 1
        yield rendered
    if len(refusals) > n_taken:
        raise refusals[0]
    if refusals:
        tell(f"{len(refusals)} of {len(refusals) + n_taken} conversations are left out, the first: {refusals[0]}")


def _renderer(metadata: Metadata) -> Callable[[Sequence[Message]], str]:
    """Return what writes a conversation as the model's template does, without one as lines."""
    template = metadata.get(Keys.Tokenizer.CHAT_TEMPLATE)
    if template is None:
        return lambda messages: "".join(f"{message['role']}: {message['content']}\n" for message in messages)
    specials = {"bos_token": Keys.Tokenizer.BOS_ID, "eos_token": Keys.Tokenizer.EOS_ID}
    variables = {name: special_text(metadata, key) for name, key in specials.items()}
    compiled = cache(lambda: template_environment(lambda: TODAY).from_string(str(template.data)))

    def render(messages: Sequence[Message]) -> str:
        with budget_for([messages]):
            copied = [dict(message) for message in messages]
            return compiled().render(messages=copied, add_generation_prompt=False, **variables)

    return render

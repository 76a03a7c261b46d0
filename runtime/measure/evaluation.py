"""Perplexity of GGUF files on a text, and how far their predictions are from a base's, by llama-perplexity's protocol.

https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity describes it. Figures against a base always go by the
16-bit log-probabilities of its file format, whether or not such a file is written: so they are the same either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.core.parallel import parallel
from tritgguf.converter.core.progress import Progress, Step, counted
from tritgguf.converter.core.whole_files import require_writable
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.placement import ANYWHERE, Placement
from tritgguf.runtime.measure.base_logits import BaseFile, Codes, encode, read_base, row_codes, write_base
from tritgguf.runtime.measure.chunks import DEFAULT_N_CTX, Chunks, cut, n_scored, read_text
from tritgguf.runtime.measure.file_size import FileSize, file_size
from tritgguf.runtime.measure.network import Network
from tritgguf.runtime.measure.scores import Figures, Scores, figures, joined, score

BLOCK_VALUES = 1 << 18  # logits that are scored at once: what is made of them stays in a core's cache
BaseRows: TypeAlias = Callable[[int], Codes]  # a chunk's number to the base's rows


@dataclass(frozen=True)
class Request:
    """What to evaluate on, and how: see evaluate()."""

    text: Path | None = None
    n_ctx: int | None = None
    n_chunks: int | None = None
    threads: int | None = None
    placement: Placement = ANYWHERE

    def open(self, path: Path, n_ctx: int) -> Network:
        return Network(path, n_ctx, n_threads=self.n_threads, placement=self.placement)

    def cut(self, network: Network, n_ctx: int) -> Chunks:
        """Return the text's chunks by the network's vocabulary."""
        names = (str(self.text or "the default text"), str(network.path))
        return cut(read_text(self.text), network.model.vocab, n_ctx, names).first(self.n_chunks)

    @property
    def n_threads(self) -> int:
        return self.threads or default_threads()


@dataclass(frozen=True)
class Evaluated:
    """A file, its size, how many chunks it was evaluated on, and its figures."""

    path: Path
    size: FileSize
    n_chunks: int
    figures: Figures

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "file_bytes": self.size.file_bytes,
            "bits_per_weight": self.size.bits_per_weight,
            "linear_bits_per_weight": self.size.linear_bits,
            "chunks": self.n_chunks,
            **self.figures.as_json(),
        }


@dataclass(frozen=True)
class Evaluation:
    """The files in the order given; `base` is what they are compared with, if it was evaluated in the same run."""

    files: tuple[Evaluated, ...]
    base: Evaluated | None
    n_ctx: int

    def as_json(self) -> dict[str, Any]:
        base = self.base.as_json() if self.base else None
        return {"files": [file.as_json() for file in self.files], "base": base, "ctx": self.n_ctx}


def evaluate(
    files: Sequence[Path],
    *,
    against: Path | None = None,
    base_logits: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,  # noqa: ANN401
) -> Evaluation:
    """Evaluate GGUF files on a text.

    `options` are Request's: `text` is a text file (default: the one that comes with the package), `n_ctx` the tokens of
    a chunk (512), `n_chunks` how many chunks at most, `threads` (one per core) and `placement` where.

    `against` is the base, which is evaluated in the same run: all files are open at once then. `base_logits` is a file
    of its log-probabilities, as llama-perplexity has them: written where `against` is given, read otherwise. Then its
    chunks are evaluated; with `text`, they must be the text's. `force` replaces an existing one.

    `progress` is called with a file's name (with `against`, "evaluating"), the tokens done and the total. TritggufError
    where a file can't be evaluated, the text is too short, or vocabularies or tokens differ.
    """
    request = Request(**options)
    sizes = [file_size(path) for path in files]
    if against is not None:
        return _against(request, [*zip(files, sizes, strict=True)], against, base_logits, force, progress)
    base = read_base(base_logits) if base_logits is not None else None
    if base is not None and request.n_ctx not in (None, base.chunks.n_ctx):
        raise EngineError(
            f"{base.path}: has chunks of {base.chunks.n_ctx} tokens, not of {request.n_ctx}; leave --ctx out"
        )
    n_ctx, found = base.chunks.n_ctx if base else request.n_ctx or DEFAULT_N_CTX, []
    for path, size in zip(files, sizes, strict=True):
        with request.open(path, n_ctx) as network:
            chunks = _chunks_of(base, request, network) if base else request.cut(network, n_ctx)
            step = counted(progress, path.name, chunks.ids.size)
            (scores,) = _scores([network], chunks, base.rows if base else None, request, step)
            found.append(Evaluated(path, size, len(chunks), figures(scores)))
    return Evaluation(tuple(found), None, n_ctx)


def _chunks_of(base: BaseFile, request: Request, network: Network) -> Chunks:
    """Return a base file's chunks; EngineError if the network can't be compared with it on these."""
    chunks = base.chunks.first(request.n_chunks)
    if base.n_vocab != network.n_vocab:
        raise EngineError(
            f"{network.path}: has a vocabulary of {network.n_vocab} tokens, {base.path} is of one with {base.n_vocab}: "
            "only files with the same vocabulary can be compared"
        )
    if request.text is None:
        return chunks
    found = request.cut(network, chunks.n_ctx).ids[: len(chunks)]
    if len(found) < len(chunks):
        raise EngineError(
            f"{base.path}: has {len(chunks)} chunks, {request.text} only {len(found)}: it is of another text"
        )
    if (found != chunks.ids).any():
        chunk, position = np.argwhere(found != chunks.ids)[0].tolist()
        raise EngineError(
            f"{base.path}: is of other tokens than those of {request.text}: token {position} of chunk {chunk + 1} is "
            f"{chunks.ids[chunk, position]}, not {found[chunk, position]}; leave --text out to take the file's tokens"
        )
    return chunks


def _against(
    request: Request,
    files: Sequence[tuple[Path, FileSize]],
    against: Path,
    base_logits: Path | None,
    force: bool,
    progress: Progress | None,
) -> Evaluation:
    """Evaluate all files chunk by chunk, each after the base, whose predictions are kept for one chunk only."""
    size, n_ctx = file_size(against), request.n_ctx or DEFAULT_N_CTX
    if base_logits is not None:
        require_writable(base_logits, [base_logits], force)  # before the models are loaded
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(request.open(against, n_ctx))
        networks = [stack.enter_context(request.open(path, n_ctx)) for path, _ in files]
        for network in networks:
            _require_same_vocabulary(network, base)
        chunks = request.cut(base, n_ctx)
        step = counted(progress, "evaluating", chunks.ids.size * (1 + len(networks)))
        writer = (
            stack.enter_context(write_base(base_logits, chunks, base.n_vocab, force=force)) if base_logits else None
        )
        base_scores: list[Scores] = []

        def rows(chunk: int) -> Codes:
            scores, encoded = encoded_chunk(base, chunks, chunk, request.n_threads)
            base_scores.append(scores)
            if writer:
                writer.write(encoded)
            step(chunks.n_ctx)
            return encoded

        found = _scores(networks, chunks, rows, request, step)
    evaluated = (
        Evaluated(path, size, len(chunks), figures(scores)) for (path, size), scores in zip(files, found, strict=True)
    )
    return Evaluation(tuple(evaluated), Evaluated(against, size, len(chunks), figures(joined(base_scores))), n_ctx)


def _require_same_vocabulary(network: Network, base: Network) -> None:
    ours, theirs = network.model.header.tokens, base.model.header.tokens
    if len(ours) != len(theirs):
        difference = f"has a vocabulary of {len(ours)} tokens, {base.path} one of {len(theirs)}"
    elif (
        token := next((i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), None)
    ) is None:
        return
    else:
        texts = [tokens[token].decode("utf-8", "replace") for tokens in (ours, theirs)]
        difference = f"has {texts[0]!r} as token {token}, {base.path} has {texts[1]!r}"
    raise EngineError(f"{network.path}: {difference}: only files with the same vocabulary can be compared")


def _scores(
    networks: Sequence[Network], chunks: Chunks, base: BaseRows | None, request: Request, step: Step
) -> list[Scores]:
    """Return each network's scores of all chunks."""
    parts: list[list[Scores]] = [[] for _ in networks]
    for chunk in range(len(chunks)):
        rows = base(chunk) if base else None
        for network, found in zip(networks, parts, strict=True):
            found += chunk_scores(network, chunks, chunk, rows, request.n_threads)
            step(chunks.n_ctx)
    return [joined(found) for found in parts]


def chunk_scores(network: Network, chunks: Chunks, chunk: int, base: Codes | None, n_threads: int) -> Iterator[Scores]:
    """Yield the scores of a chunk's positions, some at a time; `base` are the base's rows."""
    targets = chunks.targets(chunk)
    for start, logits in network.predictions(chunks.ids[chunk]):

        def scored(block: slice, start: int = start, logits: NDArray[np.float32] = logits) -> Scores:
            of_chunk = slice(start + block.start, start + block.stop)
            return score(logits[block], targets[of_chunk], None if base is None else base[of_chunk])

        yield from parallel(scored, _blocks(logits), n_threads)


def encoded_chunk(network: Network, chunks: Chunks, chunk: int, n_threads: int) -> tuple[Scores, Codes]:
    """Return a chunk's scores without a base, and its rows as a base for others."""
    targets = chunks.targets(chunk)
    parts: list[Scores] = []
    rows = np.empty((n_scored(chunks.n_ctx), row_codes(network.n_vocab)), np.uint16)
    for start, logits in network.predictions(chunks.ids[chunk]):

        def scored(block: slice, start: int = start, logits: NDArray[np.float32] = logits) -> Scores:
            of_chunk = slice(start + block.start, start + block.stop)
            rows[of_chunk] = encode(logits[block])
            return score(logits[block], targets[of_chunk], None)

        parts += parallel(scored, _blocks(logits), n_threads)
    return joined(parts), rows


def _blocks(logits: NDArray[np.float32]) -> Iterator[slice]:
    n_rows = max(1, BLOCK_VALUES // logits.shape[1])
    for start in range(0, len(logits), n_rows):
        yield slice(start, min(start + n_rows, len(logits)))

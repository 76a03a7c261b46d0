"""Whether a model that was quantized with loss is still of use: its predictions against those of its source.

Both predict the text that comes with tritgguf, by llama-perplexity's protocol (evaluation.py).
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tritgguf import converter
from tritgguf.converter.core.progress import Progress
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.errors import EngineError
from tritgguf.converter.gguf_io.reader import is_gguf
from tritgguf.runtime.chat import session
from tritgguf.runtime.measure.evaluation import Evaluated, evaluate

Word = Literal["usable", "degraded", "useless"]

N_CHUNKS = 4  # of 512 tokens, of which 255 are scored: enough to tell the words apart
# What models are known to be good for at these figures: docs/measuring.md, The verdict.
USABLE_KLD, USABLE_TOP1 = 0.3, 0.75
USELESS_KLD, USELESS_TOP1 = 1.5, 0.45
PROMPTS = ("The capital of France is", "def fibonacci(n):\n", "Question: Why is the sky blue?\nAnswer:")
COMPLETION_TOKENS, COMPLETION_CONTEXT = 32, 256


@dataclass(frozen=True)
class Completion:
    """What the written file makes of a prompt, taking the likeliest token each time."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The figures of the written file and of its source, which `word` sums up, and samples of what the file writes."""

    word: Word
    file: Evaluated
    source: Evaluated
    completions: tuple[Completion, ...]

    @property
    def line(self) -> str:
        """The verdict in words."""
        ours, theirs, other = self.file.figures, self.source.figures, self.file.figures.divergence
        assert other is not None
        return (
            f"{self.word}: perplexity {ours.ppl:.4g} (source: {theirs.ppl:.4g}), KL divergence {other.kld_mean:.2g}, "
            f"same likeliest token {100 * other.same_top1:.0f} %, on {ours.n_scored:,} tokens"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "word": self.word,
            "file": self.file.as_json(),
            "source": self.source.as_json(),
            "completions": [{"prompt": one.prompt, "text": one.text} for one in self.completions],
        }


def judge(
    source: Path,
    written: Path,
    *,
    lora: Path | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Compare a written GGUF file with the model that it was made from.

    A source that isn't a GGUF file is converted to F16 first, in the folder for temporary files. `lora` is the adapter
    that was merged into it, `threads` the number that converts. TritggufError where one of both can't be evaluated.
    """
    with _runnable(source, lora, threads, progress) as base:
        found = evaluate([written], against=base, n_chunks=N_CHUNKS, progress=progress)
    (file,), theirs = found.files, found.base
    assert theirs is not None
    return Verdict(word(file), file, theirs, tuple(_completions(written)))


def word(file: Evaluated) -> Word:
    """Return what a file with these figures against its source is good for."""
    other = file.figures.divergence
    assert other is not None
    if other.kld_mean <= USABLE_KLD and other.same_top1 >= USABLE_TOP1:
        return "usable"
    if other.kld_mean > USELESS_KLD or other.same_top1 < USELESS_TOP1:
        return "useless"
    return "degraded"


@contextlib.contextmanager
def _runnable(source: Path, lora: Path | None, threads: int | None, progress: Progress | None) -> Iterator[Path]:
    """Yield a GGUF file of the source's own values, as F16 where it is no GGUF file."""
    if is_gguf(source):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tritgguf-", ignore_cleanup_errors=True) as folder:
        needed = converter.plan(source, "f16", lora=lora, threads=threads).file_bytes
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise EngineError(
                f"{source}: its copy as F16 needs {format_size(needed)} in {Path(folder).parent}, which has "
                f"{format_size(free)}; set TMPDIR to a folder with more"
            )
        base = Path(folder) / "source-f16.gguf"
        converter.convert(source, base, "f16", lora=lora, check=False, threads=threads, progress=progress)
        yield base


def _completions(path: Path) -> Iterator[Completion]:
    with session.open(path, n_ctx=COMPLETION_CONTEXT) as opened:
        for prompt in PROMPTS:
            text = "".join(opened.generate(prompt, max_tokens=COMPLETION_TOKENS, temperature=0))
            yield Completion(prompt, text)

"""README.md for a converted file, as it is shared on a hub: where it comes from, how good it is, how it is run."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterator

from gguf import Keys

import tritgguf
from tritgguf.converter.conversion.pipeline import Conversion
from tritgguf.converter.core.sizes import format_size
from tritgguf.converter.gguf_io.reader import GgufFile, read_gguf
from tritgguf.converter.model.hub_source import recorded_source
from tritgguf.runtime.measure.verdict import Verdict


def model_card(result: Conversion, verdict: Verdict | None) -> str:
    """Return the card of a file that has just been written; `verdict` is None where nothing was lost."""
    file = read_gguf(result.out)
    name = _text(file, Keys.General.NAME) or result.out.stem
    sections = [f"# {name}, GGUF", "\n".join(_facts(result, file))]
    if verdict is not None:
        sections += ["\n".join(_figures(verdict)), *_completions(verdict)]
    sections.append(f"```\ntritgguf chat {result.out.name}\n```")
    if result.plan.notes:
        sections.append("\n".join(["## Notes", "", *(f"- {note}" for note in result.plan.notes)]))
    return _front_matter(file) + "\n\n".join(sections) + "\n"


def _front_matter(file: GgufFile) -> str:
    """Return what a hub reads, YAML; JSON's strings are YAML's too."""
    source = recorded_source(file.metadata)
    said = {"license": _text(file, Keys.General.LICENSE), "base_model": source and source.repo}
    lines = [f"{key}: {json.dumps(value)}" for key, value in said.items() if value]
    return "\n".join(["---", *lines, "library_name: gguf", "tags:", "- gguf", "- tritgguf", "---", "", ""])


def _facts(result: Conversion, file: GgufFile) -> Iterator[str]:
    tensors = result.plan.tensors
    types = Counter(tensor.codec.name for tensor in tensors)
    rounded = sum(tensor.rounded for tensor in tensors)
    yield "| fact | value |"
    yield "|---|---|"
    if source := recorded_source(file.metadata):
        yield f"| made of | {source.url} |"
    yield f"| made by | tritgguf {tritgguf.__version__} |"
    yield f"| size | {format_size(result.plan.file_bytes)} |"
    yield f"| tensors | {', '.join(f'{count} {name}' for name, count in types.items())} |"
    yield f"| quantized with loss | {f'{rounded} of {len(tensors)} tensors' if rounded else 'none'} |"


def _figures(verdict: Verdict) -> Iterator[str]:
    ours, theirs, other = verdict.file.figures, verdict.source.figures, verdict.file.figures.divergence
    assert other is not None
    yield f"## Quality: {verdict.word}"
    yield ""
    yield "| | this file | its source |"
    yield "|---|---|---|"
    yield f"| perplexity | {ours.ppl:.4g} ± {ours.ppl_error:.2g} | {theirs.ppl:.4g} ± {theirs.ppl_error:.2g} |"
    yield f"| mean KL divergence | {other.kld_mean:.3g} ± {other.kld_error:.2g} | |"
    yield f"| same likeliest token | {100 * other.same_top1:.1f} % | |"
    yield ""
    yield f"On {ours.n_scored:,} tokens of the text that comes with tritgguf, by llama-perplexity's protocol."


def _completions(verdict: Verdict) -> Iterator[str]:
    yield "What it writes, taking the likeliest token each time:"
    for one in verdict.completions:
        yield textwrap.indent(one.prompt + one.text, "    ", lambda _line: True)  # no text ends such a block of code


def _text(file: GgufFile, key: str) -> str | None:
    found = file.value(key)
    return " ".join(found.split()) or None if isinstance(found, str) else None

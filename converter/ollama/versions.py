"""What each range of Ollama versions loads, as data; docs/ollama.md has the sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritgguf.converter.planning.targets import refuses

if TYPE_CHECKING:
    from tritgguf.converter.gguf_io.reader import GgufFile

Version = tuple[int, int, int]
CREATE_API: Version = (0, 5, 5)  # the first whose /api/create takes a template, and files by digest


@dataclass(frozen=True)
class Era:
    """The versions from `first` to the next era, and where they take the prompt format from."""

    name: str
    first: Version
    template: str


_GUESSES = "the Modelfile's TEMPLATE; without one, a guess from the file's jinja, or none at all"
_RENDERS = "the Modelfile's TEMPLATE; without one, a guess from the file's jinja, or the jinja itself"
ERAS = (
    Era("before 0.7.1", (0, 0, 0), _GUESSES),
    Era("0.7.1 to 0.29", (0, 7, 1), _GUESSES),
    Era("0.30.0 to 0.31.1", (0, 30, 0), _RENDERS),
    Era("0.31.2 and newer", (0, 31, 2), _RENDERS),
)
# Tensor types, per era: True loads, False is refused, None is untested. All eras load the types that have no row.
_EARLIER: Mapping[str, tuple[bool | None, ...]] = {
    "TQ1_0": (None, True, True),
    "TQ2_0": (None, True, True),
    "Q2_0": (None, None, None),
    "Q1_0": (None, None, None),
    "MXFP4": (None, None, None),
    "NVFP4": (None, None, None),
}
TYPES = {kind: (*eras, not refuses("ollama", kind)) for kind, eras in _EARLIER.items()}
# The same for architectures. All eras refuse those that llama.cpp doesn't have.
ARCHITECTURES: Mapping[str, tuple[bool | None, ...]] = {
    "llama": (True, True, True, True),
    "qwen2": (True, True, True, True),
    "qwen3": (None, True, True, True),
    "bitnet": (None, True, True, True),
    "minicpm": (None, True, True, True),
}
_OTHER = (None, None, None, True)


@dataclass(frozen=True)
class Verdict:
    """Whether the versions of an era load a file (None: untested), and the reasons if not True."""

    era: Era
    loads: bool | None
    reasons: tuple[str, ...]


def verdicts(file: GgufFile) -> tuple[Verdict, ...]:
    """Return what each era does with a file, oldest first."""
    types = {tensor.dtype: tensor.name for tensor in file.tensors.values()}
    return tuple(_verdict(file.architecture or "", types, number) for number in range(len(ERAS)))


def _verdict(architecture: str, types: Mapping[str, str], number: int) -> Verdict:
    from gguf import MODEL_ARCH_NAMES  # a slow import, which `--help` must not wait for

    known = architecture in MODEL_ARCH_NAMES.values()
    answers = [(ARCHITECTURES.get(architecture, _OTHER)[number] if known else False, f"architecture {architecture}")]
    for kind, name in types.items():
        answers.append((TYPES.get(kind, (True,) * len(ERAS))[number], f"{kind} tensors such as {name}"))
    refused = tuple(f"refuses {what}" for taken, what in answers if taken is False)
    unknown = tuple(f"not tested with {what}" for taken, what in answers if taken is None)
    loads = False if refused else None if unknown else True
    return Verdict(ERAS[number], loads, refused or unknown)


def verdict_for(file: GgufFile, version: str) -> Verdict:
    """Return the verdict of the era of a version such as "0.31.1"; builds without a number count as the newest."""
    return next(v for v in reversed(verdicts(file)) if v.era.first <= parsed(version))


def parsed(version: str) -> Version:
    """Return the numbers of a version such as 0.31.1 or 0.12.0-rc1; 0.0.0, a build from source, becomes 99.0.0."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    numbers = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return (99, 0, 0) if numbers == (0, 0, 0) else (numbers[0], numbers[1], numbers[2])


def refused_types(types: Iterable[str]) -> list[str]:
    """Return the tensor types that the newest Ollama refuses, sorted."""
    return sorted({kind for kind in types if refuses("ollama", kind)})

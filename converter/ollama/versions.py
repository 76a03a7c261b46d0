"""What each range of Ollama versions loads, as data; docs/ollama.md has the sources."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritgguf.converter.model.gguf import LINEAR
from tritgguf.converter.planning.targets import refuses

if TYPE_CHECKING:
    from tritgguf.converter.gguf_io.reader import GgufFile

Version = tuple[int, int, int]
SCALE = ".scale"
CREATE_API: Version = (0, 5, 5)  # the first whose /api/create takes a template, and files by digest


@dataclass(frozen=True)
class Era:
    """The versions from `first` to the next era, and where they take the prompt format from."""

    name: str
    first: Version
    template: str


_GUESSES = "the Modelfile's TEMPLATE; without one, a guess from the file's jinja, or none at all"
_RENDERS = (
    "the file's jinja if that offers more (tools, thinking) than the Modelfile's TEMPLATE, else the TEMPLATE; "
    "without a TEMPLATE, a guess from the file's jinja, or the jinja itself"
)
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
# The same for architectures. All eras refuse those that neither stand here nor in gguf's list of llama.cpp's.
ARCHITECTURES: Mapping[str, tuple[bool | None, ...]] = {
    "llama": (True, True, True, True),
    "qwen2": (True, True, True, True),
    "qwen3": (None, True, True, True),
    "bitnet": (None, True, True, True),
    "minicpm": (None, True, True, True),
    # llama.cpp's pull request 27000 was still open in September 2026; Ollama 0.31.2 is of July.
    "maple": (False, False, False, None),
    "qwen3next": (False, None, None, True),  # llama.cpp has it since November 2025, Ollama 0.7.1 is of May
}
_OTHER = (None, None, None, True)
_UNKNOWN = (False,) * len(ERAS)
# The same for the graphs that multiply a layer by its `.scale` tensor. BitNet's always did. The others do so since
# llama.cpp's pull request 20427, which came with Ollama 0.30.0 (llama.cpp b9452). Before, llama.cpp refused such a file
# ("wrong number of tensors"), and Ollama's own engine, which ran qwen3, computed without the scales.
SCALES: Mapping[str, tuple[bool | None, ...]] = {
    "llama": (False, False, True, True),
    "qwen3": (False, False, True, True),
    "qwen3moe": (False, False, None, None),
    "bitnet": (True, True, True, True),
}
_OTHER_SCALES = (False, False, None, None)


@dataclass(frozen=True)
class Verdict:
    """Whether the versions of an era load a file (None: untested), and the reasons if not True."""

    era: Era
    loads: bool | None
    reasons: tuple[str, ...]


def verdicts(file: GgufFile) -> tuple[Verdict, ...]:
    """Return what each era does with a file, oldest first."""
    return verdicts_on(file.architecture or "", {name: tensor.dtype for name, tensor in file.tensors.items()})


def verdicts_on(architecture: str, types: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Return what each era does with a file of that architecture that holds these types, by the tensors' names."""
    return tuple(_verdict(architecture, types, number) for number in range(len(ERAS)))


def _verdict(architecture: str, types: Mapping[str, str], number: int) -> Verdict:
    from gguf import MODEL_ARCH_NAMES  # a slow import, which `--help` must not wait for

    others = _OTHER if architecture in MODEL_ARCH_NAMES.values() else _UNKNOWN
    answers = [(ARCHITECTURES.get(architecture, others)[number], f"architecture {architecture}")]
    for kind, name in {kind: name for name, kind in types.items()}.items():
        answers.append((TYPES.get(kind, (True,) * len(ERAS))[number], f"{kind} tensors such as {name}"))
    refused = [f"refuses {what}" for taken, what in answers if taken is False]
    unknown = [f"not tested with {what}" for taken, what in answers if taken is None]
    if scale := next(filter(is_scale, types), None):
        multiplies = SCALES.get(architecture, _OTHER_SCALES)[number]
        if multiplies is False:
            refused.append(f"refuses or ignores the scales in tensors such as {scale}")
        elif multiplies is None:
            unknown.append(f"not tested with scales in tensors such as {scale}")
    loads = False if refused else None if unknown else True
    return Verdict(ERAS[number], loads, tuple(refused or unknown))


def is_scale(name: str) -> bool:
    """Whether a tensor of that name holds what a linear layer's weights are to be multiplied by."""
    return name.endswith(SCALE) and LINEAR.match(name.removesuffix(SCALE) + ".weight") is not None


def verdict_for(found: Sequence[Verdict], version: str) -> Verdict:
    """Return the verdict of the era of a version such as "0.31.1"; builds without a number count as the newest."""
    return next(verdict for verdict in reversed(found) if verdict.era.first <= parsed(version))


def parsed(version: str) -> Version:
    """Return the numbers of a version such as 0.31.1 or 0.12.0-rc1; 0.0.0, a build from source, becomes 99.0.0."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", version)
    numbers = tuple(int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    return (99, 0, 0) if numbers == (0, 0, 0) else (numbers[0], numbers[1], numbers[2])


def refused_types(types: Iterable[str]) -> list[str]:
    """Return the tensor types that the newest Ollama refuses, sorted."""
    return sorted({kind for kind in types if refuses("ollama", kind)})

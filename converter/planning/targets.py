"""The targets of `--for`, and the types to choose from for each; every codec lists where it runs."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from tritgguf.converter.errors import UnsupportedError

if TYPE_CHECKING:
    from tritgguf.converter.quant.codec import AnyCodec

ANY = "any"  # all of the others
TARGETS = ("cpu", "cuda", "metal", "vulkan", "ollama", ANY)


def is_x86() -> bool:
    """Whether this machine's CPU is what `--for cpu` means by x86."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def ternary_types(target: str, fast_here: Collection[str] = ()) -> tuple[str, ...]:
    """Return the ternary types to choose from for a target, smallest first; on x86 without those slow there.

    `fast_here` are types that this computer's runtime multiplies fast on the CPU, whatever llama.cpp itself does.
    """
    if target not in TARGETS:
        raise UnsupportedError(f"unknown target {target!r}; expected one of {', '.join(TARGETS)}")
    slow = [codec.name for codec in _codecs().values() if target == "cpu" and slow_here(codec.name, fast_here)]
    return _names(codec for codec in _running_on(target) if codec.ternary and codec.name not in slow)


def ternary_types_for(target: str, role: str, *, tied: bool, fast_here: Collection[str] = ()) -> tuple[str, ...]:
    """Return the ternary types to choose from for tensors of a role, smallest first.

    Rows of token embeddings are looked up. That needs no fast matrix product, unless the embeddings are the output
    layer too (`tied`).
    """
    if role != "embedding":
        return ternary_types(target, fast_here)
    names = _names(codec for codec in _codecs().values() if codec.ternary and reads_rows(target, codec.name))
    return tuple(name for name in names if not tied or name in ternary_types(target, fast_here))


def reads_rows(target: str, type_name: str) -> bool:
    """Whether all programs of that target load the type and look rows up in it."""
    codec = _codecs()[type_name]
    return _needed(target) <= set(codec.rows_read_on) - set(codec.refused_by)


def float_types(target: str) -> tuple[str, ...]:
    """Return the types to choose from for a target where no ternary type is exact, smallest first."""
    linear = (codec for codec in _running_on(target) if codec.for_linear)
    return _names(codec for codec in linear if codec.grid_levels or not codec.ternary)


def refuses(target: str, type_name: str) -> bool:
    """Whether programs of that target can't load a file with a tensor of that type."""
    codec = _codecs().get(type_name.lower())
    return codec is not None and target in codec.refused_by


def slow_here(type_name: str, fast_here: Collection[str] = ()) -> bool:
    """Whether this is an x86 CPU, for which the pinned llama.cpp has only scalar code for that type."""
    codec = _codecs().get(type_name)
    return codec is not None and codec.slow_on_x86 and is_x86() and type_name not in fast_here


def _running_on(target: str) -> Iterator[AnyCodec]:
    return (codec for codec in _codecs().values() if _needed(target) <= set(codec.runs_on))


def _needed(target: str) -> set[str]:
    return set(TARGETS) - {ANY} if target == ANY else {target}


def _names(codecs: Iterable[AnyCodec]) -> tuple[str, ...]:
    """Return the names, smallest type first, and of equal ones first that which runs in more places."""
    return tuple(c.name for c in sorted(codecs, key=lambda c: (c.bits_per_weight, -len(c.runs_on), c.name)))


def _codecs() -> dict[str, AnyCodec]:
    from tritgguf.converter.quant.codec import codecs  # not at the top: the help needs TARGETS, but not numpy

    return codecs()

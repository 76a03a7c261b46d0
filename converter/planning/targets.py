"""Where a file is meant to run, and which ternary types have fast kernels there (llama.cpp of the pinned version)."""

from __future__ import annotations

import platform

from tritgguf.converter.errors import UnsupportedError

# Smallest first. Any type that no row names runs, if at all, on the CPU or by unpacked arithmetic.
TERNARY_TYPES = {
    "cpu": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0"),
    "cuda": ("q2_0", "q2_k", "q4_0"),
    "metal": ("tq2_0", "q2_0", "q2_k", "q4_0"),
    "vulkan": ("tq1_0", "tq2_0", "q2_0", "q2_k", "q4_0"),
    "ollama": ("q2_k", "q4_0"),
    "any": ("q2_k", "q4_0"),
}
# Types with which the newest versions of a target refuse a file as a whole: docs/ollama.md.
REFUSED = {"ollama": ("tq1_0", "tq2_0", "q2_0")}
SLOW_ON_X86 = ("q2_0",)  # scalar code, some ten times slower than TQ2_0


def is_x86() -> bool:
    """Whether this machine's CPU is what `--for cpu` means by x86."""
    return platform.machine().lower() in ("x86_64", "amd64", "i686")


def ternary_types(target: str) -> tuple[str, ...]:
    """Return the ternary types to choose from for a target, smallest first; on x86 without those slow there."""
    if target not in TERNARY_TYPES:
        raise UnsupportedError(f"unknown target {target!r}; expected one of {', '.join(TERNARY_TYPES)}")
    names = TERNARY_TYPES[target]
    return tuple(name for name in names if not (target == "cpu" and is_x86() and name in SLOW_ON_X86))


def refuses(target: str, type_name: str) -> bool:
    """Whether programs of that target can't load a file with a tensor of that type."""
    return type_name.lower() in REFUSED.get(target, ())


# Types for weights that no ternary type holds; llama.cpp has kernels for them wherever no row says otherwise.
FLOAT_TYPES = ("q2_k", "q3_k", "q4_k", "nvfp4", "q6_k", "q8_0", "bf16", "f16")
NOT_ON = {"nvfp4": ("metal", "ollama", "any")}


def float_types(target: str) -> tuple[str, ...]:
    """Return the types to choose from for a target where no ternary type is exact."""
    return tuple(name for name in FLOAT_TYPES if target not in NOT_ON.get(name, ()))

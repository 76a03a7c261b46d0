"""The processor's instructions, and which of them a build of llama.cpp uses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from tritgguf.runtime.engine.kernels.verdicts import processor

# Names in llama_print_system_info(), and what /proc/cpuinfo calls the same.
_FLAGS = {
    "SSE3": "pni",
    "SSSE3": "ssse3",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA": "fma",
    "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VBMI": "avx512vbmi",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "FP16_VA": "asimdhp",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
    "SME": "sme",
}
_OF_PROGRAMS = ("LLAMAFILE", "OPENMP", "REPACK", "ACCELERATE", "KLEIDIAI")


@dataclass(frozen=True)
class Instructions:
    """Instruction sets of the processor: those that llama.cpp uses, and those that it doesn't though it could."""

    used: tuple[str, ...]
    unused: tuple[str, ...]
    n_logical: int


def instructions(system_info: str) -> Instructions:
    """Read them off llama.cpp's own line; which aren't used is known where the system lists what there is (Linux)."""
    cpu = re.split(r"(?<=\|)\s*(?=\w+ : )", system_info)  # a part for each backend: "CPU : AVX = 1 | …"
    parts = [part for part in cpu if part.startswith("CPU : ")]
    named = re.findall(r"(\w+) = (\d+)", parts[0] if parts else "")
    used = tuple(name for name, value in named if value != "0" and name not in _OF_PROGRAMS)
    there = set(processor().lower().split())
    unused = tuple(name for name, flag in _FLAGS.items() if flag in there and name not in used) if used else ()
    return Instructions(used, unused, os.cpu_count() or 1)

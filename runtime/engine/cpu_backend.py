"""llama.cpp's part that computes on the CPU: which of its libraries that is, and whether its AMX code can be used.

A build for this very machine holds one, libggml-cpu. A build for any machine (GGML_BACKEND_DL, GGML_CPU_ALL_VARIANTS)
holds one per kind of processor, and llama.cpp takes the best that runs here, once it is told where they are. Its own
ggml_backend_load_all() looks beside the Python program and in the current folder, which may be anyone's.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from tritgguf.converter.errors import EngineError

_GCC = re.compile(rb"GCC: \([^)\0]*\) (\d+)\.(\d+)")  # in an ELF file's section .comment


def load_backends(llama: ctypes.CDLL, ggml: ctypes.CDLL) -> None:
    """Load the backends that lie beside `llama`, unless they are part of the build; EngineError if none runs here."""
    # The file that libllama needs may be a copy of `ggml` under another name, with a list of backends of its own.
    owner = llama if hasattr(llama, "ggml_backend_reg_count") else ggml
    owner.ggml_backend_reg_count.restype = ctypes.c_size_t
    if owner.ggml_backend_reg_count():
        return
    folder = Path(llama._name).parent
    owner.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    owner.ggml_backend_load_all_from_path.restype = None
    owner.ggml_backend_load_all_from_path(os.fsencode(folder))
    if not owner.ggml_backend_reg_count():
        raise EngineError(f"{folder}: none of llama.cpp's libraries runs on this processor; install tritgguf again")


def amx_is_broken(llama: ctypes.CDLL) -> bool:
    """Return whether the AMX code beside `llama` would crash: GCC before 12.4 and 13.3 drops the tiles' configuration.

    See https://gcc.gnu.org/PR114098. Only builds for one machine are looked at; the others leave AMX out.
    """
    built = Path(llama._name).with_name("libggml-cpu.so")
    if not hasattr(llama, "ggml_cpu_has_amx_int8") or not llama.ggml_cpu_has_amx_int8() or not built.exists():
        return False
    return _compiled_by_such_a_gcc(built.read_bytes())


def _compiled_by_such_a_gcc(library: bytes) -> bool:
    """The newest compiler counts: the C library's own object files name theirs too."""
    versions = [(int(major), int(minor)) for major, minor in _GCC.findall(library)]
    if not versions or b"clang version" in library:
        return False
    return max(versions) < (12, 4) or (13, 0) <= max(versions) < (13, 3)

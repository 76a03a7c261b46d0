"""Which of llama.cpp's libraries computes on the CPU, and that AMX code which would crash isn't used."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tritgguf.converter import convert
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import backend, cpu_backend

needs_gcc = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="builds small libraries in ELF files with GCC"
)

REGISTRY = """
#include <string.h>
static unsigned long loaded = %d;
static char folder[4096];
unsigned long ggml_backend_reg_count(void) { return loaded; }
void ggml_backend_load_all_from_path(const char *path) { strncpy(folder, path, 4095); loaded = %d; }
const char *asked(void) { return folder; }
"""


def built(folder: Path, code: str, name: str = "libllama.so") -> ctypes.CDLL:
    (folder / "code.c").write_text(code)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / name, folder / "code.c"], check=True)
    return ctypes.CDLL(str(folder / name))


@needs_gcc
def test_backends_are_loaded_from_the_folder_of_the_library(tmp_path: Path) -> None:
    library = built(tmp_path, REGISTRY % (0, 1))
    library.asked.restype = ctypes.c_char_p
    cpu_backend.load_backends(library, library)
    assert library.asked() == bytes(tmp_path)


@needs_gcc
def test_a_build_that_has_its_backends_is_left_alone(tmp_path: Path) -> None:
    library = built(tmp_path, REGISTRY % (1, 2))
    cpu_backend.load_backends(library, library)
    assert library.ggml_backend_reg_count() == 1


@needs_gcc
def test_where_no_library_runs_the_error_says_so(tmp_path: Path) -> None:
    library = built(tmp_path, REGISTRY % (0, 0))
    with pytest.raises(EngineError, match="libraries runs on this processor"):
        cpu_backend.load_backends(library, library)


def test_this_build_has_its_backends() -> None:
    library = backend.native._lib
    if hasattr(library, "ggml_backend_reg_count"):
        assert library.ggml_backend_reg_count() >= 1


COMMENTS = [  # what compilers write into a library, newest last; whether AMX code of theirs is broken
    (b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0", True),
    (b"GCC: (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0\0", True),
    (b"GCC: (GNU) 12.4.0\0", False),
    (b"GCC: (Ubuntu 13.2.0-23ubuntu4) 13.2.0\0", True),
    (b"GCC: (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0\0", False),
    (b"GCC: (GNU) 8.5.0 20210514 (Red Hat 8.5.0-22)\0GCC: (GNU) 14.2.1 20250110 (Red Hat 14.2.1-7)\0", False),
    (b"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0\0Debian clang version 14.0.6\0", False),
    (b"", False),
]


@needs_gcc
@pytest.mark.parametrize(("comment", "broken"), COMMENTS)
def test_amx_is_used_only_if_its_compiler_is_known_to_be_right(comment: bytes, broken: bool, tmp_path: Path) -> None:
    library = built(tmp_path, "int ggml_cpu_has_amx_int8(void) { return 1; }")
    (tmp_path / "libggml-cpu.so").write_bytes(b"\x7fELF\0" + comment + b"\0.comment\0")
    assert cpu_backend.amx_is_broken(library) is broken


@needs_gcc
def test_a_compiler_s_own_file_tells_its_version(tmp_path: Path) -> None:
    """Here it is whichever GCC there is; a build without AMX is never looked at."""
    version = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    number = tuple(int(part) for part in version.split(".")[:2])
    library = built(tmp_path, "int ggml_cpu_has_amx_int8(void) { return 1; }", "libggml-cpu.so")
    assert cpu_backend.amx_is_broken(library) is (number < (12, 4) or (13, 0) <= number < (13, 3))
    without = built(tmp_path, "int ggml_cpu_has_amx_int8(void) { return 0; }", "libggml-cpu.so.2")
    assert not cpu_backend.amx_is_broken(without)


def test_without_amx_nothing_is_repacked(tmp_path: Path, monkeypatch, capfd) -> None:
    """llama.cpp's own log tells where weights are: AMX is one of the places that this turns off, CPU_REPACK another."""
    convert(ROOT / "vendor" / "demo-model", tmp_path / "demo.gguf", type="q4_0")
    monkeypatch.setattr(backend._log, "to_stderr", True)

    def is_repacked(extra_buffers: bool) -> bool:
        monkeypatch.setattr(backend, "EXTRA_BUFFERS", extra_buffers)
        with backend.Model(tmp_path / "demo.gguf"):
            return "CPU_REPACK model buffer" in capfd.readouterr().err

    if not is_repacked(extra_buffers=True):
        pytest.skip("llama.cpp repacks no Q4_0 for this processor")
    assert not is_repacked(extra_buffers=False)

"""The other ways to make such a file: llama.cpp's converter, from the pinned sdist, and its quantizer."""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.fetch import cache_folder

PIN = json.loads((Path(__file__).parents[2] / "vendor" / "llama-cpp-python.json").read_text())
WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
FILE_TYPES = {"tq1_0": 36, "tq2_0": 37}  # LLAMA_FTYPE_MOSTLY_TQ1_0, …


def converter_script() -> Path:
    """Return llama.cpp's convert_hf_to_gguf.py, fetched once; it needs torch and transformers (the golden extra)."""
    folder = cache_folder() / f"llama.cpp-{PIN['version']}"
    script = folder / WANTED[0]
    if script.exists():
        return script
    requirement = f"llama-cpp-python=={PIN['version']}"
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        subprocess.run([*pip, "--dest", scratch, requirement], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != PIN["sdist_sha256"]:
            raise RuntimeError(f"{archive.name} isn't the pinned one")
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and name.startswith(WANTED):
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = tar.extractfile(member)
                    assert source is not None
                    target.write_bytes(source.read())
    return script


def convert_command(python: Path, folder: Path, out: Path, kind: str) -> list[object]:
    return [python, converter_script(), folder, "--outfile", out, "--outtype", kind]


def quantize_command(f16_file: Path, out: Path, kind: str, threads: int) -> list[object]:
    return [sys.executable, "-m", "tests.bench.peers", f16_file, out, kind, threads]


def quantize(f16_file: str, out: str, kind: str, threads: str) -> int:
    """Call llama_model_quantize of the installed library, with its defaults."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], int(threads)
    return int(llama_cpp.llama_model_quantize(f16_file.encode(), out.encode(), ctypes.byref(parameters)))


if __name__ == "__main__":
    sys.exit(quantize(*sys.argv[1:5]))

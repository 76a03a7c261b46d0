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
from typing import Any

import numpy as np

from tests.fetch import cache_folder
from tritgguf.converter.gguf_io.imatrix import read_imatrix

PIN = json.loads((Path(__file__).parents[2] / "vendor" / "llama-cpp-python.json").read_text())
WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
# LLAMA_FTYPE_MOSTLY_Q2_K, …
FILE_TYPES = {"q2_k": 10, "iq2_xxs": 19, "iq2_xs": 20, "iq1_s": 24, "iq1_m": 31, "tq1_0": 36, "tq2_0": 37, "q2_0": 41}
F16 = 1  # GGML_TYPE_F16


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


def quantize_command(f16_file: Path, out: Path, kind: str, threads: int, imatrix: Path | None = None) -> list[object]:
    command = [sys.executable, "-m", "tests.bench.peers", f16_file, out, kind, threads]
    return command if imatrix is None else [*command, imatrix]


def quantize(f16_file: str, out: str, kind: str, threads: str, imatrix: str | None = None) -> int:
    """Call llama_model_quantize of the installed library, with its defaults.

    With an importance matrix all linear layers get that one type, and embeddings and output layer stay F16, as
    `llama-quantize --pure --imatrix FILE --token-embedding-type f16 --output-tensor-type f16` makes them.
    """
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = FILE_TYPES[kind], int(threads)
    if imatrix is not None:
        parameters.pure, parameters.token_embedding_type, parameters.output_tensor_type = True, F16, F16
        rows = importance_rows(Path(imatrix))
        parameters.imatrix = rows
    return int(llama_cpp.llama_model_quantize(f16_file.encode(), out.encode(), ctypes.byref(parameters)))


def importance_rows(imatrix: Path) -> Any:
    """Return an importance matrix as an array of llama_model_imatrix_data, the last without a name."""
    import llama_cpp

    entries = read_imatrix(imatrix).entries
    rows = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    for row, (name, entry) in zip(rows, entries.items(), strict=False):
        means = np.ascontiguousarray((entry.sums / entry.counts[:, None]).reshape(-1))
        row.name, row.size = name.encode(), means.size
        row.data = (ctypes.c_float * means.size).from_buffer(means)
    return rows


if __name__ == "__main__":
    sys.exit(quantize(*sys.argv[1:]))

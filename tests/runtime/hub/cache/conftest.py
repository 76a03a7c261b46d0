"""The cache in a folder of its own, and the demo model under a path of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.runtime.hub.cache import Cache

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("TRITGGUF_CACHE", str(tmp_path / "cache"))
    return Cache()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo model, which is ternary and has a chat template."""
    return Path(shutil.copytree(ROOT / "vendor" / "demo-model", tmp_path / "demo"))


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Cache) -> Say:
    """Run the command line in this process."""
    return lambda *arguments: run_captured(monkeypatch, capsys, *arguments)

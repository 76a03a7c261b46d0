"""The cache in a folder of its own, and the demo model, as a copy and already in the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.command_line import run_captured
from tests.paths import ROOT
from tritgguf.runtime.hub.cache import Cache
from tritgguf.runtime.hub.obtain import Obtainer
from tritgguf.runtime.hub.record import Form
from tritgguf.runtime.hub.source import named_source

Say = Callable[..., tuple[int, str, str]]
DEMO = ROOT / "vendor" / "demo-model"


@pytest.fixture(scope="module", autouse=True)
def no_type_is_faster() -> Iterator[None]:
    """Of exact types the smallest one is taken, as on a machine where it is also the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tritgguf.runtime.engine.decode_speed.seconds_per_weight", dict)
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("TRITGGUF_CACHE", str(tmp_path / "cache"))
    return Cache()


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A copy of the demo model, which is ternary and has a chat template."""
    return Path(shutil.copytree(DEMO, tmp_path / "demo"))


@pytest.fixture(scope="module")
def made(no_type_is_faster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cache]:
    """A copy of the demo model, not to be changed, and a cache with it, to be copied."""
    folder = tmp_path_factory.mktemp("made")
    demo, cache = Path(shutil.copytree(DEMO, folder / "demo")), Cache(folder / "models")
    Obtainer(cache).obtain(named_source(str(demo)), Form())
    return demo, cache


@pytest.fixture
def had(made: tuple[Path, Cache], cache: Cache) -> Path:
    """The demo model, which is in the cache already."""
    demo, filled = made
    shutil.copytree(filled.folder, cache.folder)
    return demo


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Cache) -> Say:
    """Run the command line in this process."""
    return lambda *arguments: run_captured(monkeypatch, capsys, *arguments)

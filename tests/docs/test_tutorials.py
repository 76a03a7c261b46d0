"""The pages of docs/tutorials do what they say: every command and every piece of Python in them runs.

The names in them are real. A hub on this machine has small models in the same formats under these names, and the demo
model is the reader's own; so where a page shows what a real model prints, it has "…".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import checkpoints, foreign_gguf, packed_checkpoints
from tests.docs.tutorial import differences, matches, steps
from tests.ollama_server import ollama_server
from tests.paths import DOCS, ROOT
from tests.runtime.hub.hub_server import server

TUTORIALS = DOCS / "tutorials"


def _bitnet(folder: Path) -> None:
    built = packed_checkpoints.build("2b4t", folder / "bitnet-on-the-hub")
    server().add("microsoft/bitnet-b1.58-2B-4T", {path.name: path.read_bytes() for path in built.iterdir()})


def _bonsai(folder: Path) -> None:
    stored, _ = foreign_gguf.model(foreign_gguf.KINDS["Q2_0-g128"])
    base = foreign_gguf.base_file(folder / "keys.gguf")
    file = foreign_gguf.add_tensors(base, folder / "bonsai-Q2_0.gguf", stored)
    name = "Ternary-Bonsai-1.7B"
    server().add(f"prism-ml/{name}-gguf", {f"{name}-Q2_0.gguf": file.read_bytes()})


def _known_template(folder: Path) -> None:
    checkpoints.build("llama-tied", folder / "my-model")


def _own(folder: Path) -> None:
    shutil.copytree(ROOT / "vendor" / "demo-model", folder / "my-model")


PREPARE: dict[str, Callable[[Path], None]] = {
    "bitnet": _bitnet,
    "bonsai": _bonsai,
    "ollama": _known_template,
    "own-model": _own,
    "python": _own,
}


@pytest.fixture
def _ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ollama_server() as started:
        monkeypatch.setenv("OLLAMA_HOST", started.address)
        yield


@pytest.mark.usefixtures("_ollama", "token_ids_here")
@pytest.mark.parametrize("name", PREPARE)
def test_tutorial(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITGGUF_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    PREPARE[name](tmp_path)
    found = differences(TUTORIALS / f"{name}.md", monkeypatch)
    assert not found, "\n\n".join(found)


def test_every_tutorial_is_run() -> None:
    assert {page.stem: len(list(steps(page))) > 2 for page in TUTORIALS.glob("*.md")} == dict.fromkeys(PREPARE, True)


def test_what_counts_as_shown() -> None:
    assert matches("a … c\n…\nz\n", "a b c\n1\n2\nz  \n")
    assert matches("…\nz", "z\n")
    assert not matches("a … c\nz\n", "a b d\nz\n")
    assert not matches("", "something\n")

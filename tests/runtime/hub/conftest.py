"""The hub of these tests, and the demo model on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import paths
from tests.runtime.hub.hub_server import HubServer, Repository, server
from tritgguf.converter import convert

DEMO = paths.ROOT / "vendor" / "demo-model"


@pytest.fixture(autouse=True)
def _token_ids_here(token_ids_here: None) -> None:
    """No further process for each conversion."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The server, with nothing asked and no faults; clients pause for a moment only where it fails."""
    from tritgguf.runtime.hub import transfer

    monkeypatch.setattr(transfer, "PAUSES", (0.01,) * len(transfer.PAUSES))
    started = server()
    started.clear()
    yield started
    started.clear()


def demo_files() -> dict[str, bytes]:
    """The demo model's files, with some that no model needs."""
    files = {path.name: path.read_bytes() for path in DEMO.iterdir()}
    return {
        **files,
        ".gitattributes": b"*.safetensors lfs\n",
        "onnx/model.onnx": bytes(20_000),
        "flax_model.msgpack": bytes(9),
    }


@pytest.fixture
def demo(hub: HubServer, request: pytest.FixtureRequest) -> Repository:
    """The demo model in a repository of this test's own, so that nothing of it is in the cache."""
    return hub.add(
        f"tests/{request.node.name.translate(str.maketrans('[]/ ', '----')).strip('-').replace('--', '-')}",
        demo_files(),
    )


@pytest.fixture(scope="module")
def demo_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, converted from its folder."""
    out = tmp_path_factory.mktemp("demo") / "demo.gguf"
    convert(DEMO, out, "tq2_0", check=False)
    return out

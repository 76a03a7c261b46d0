"""A download that is stopped at some point: what came is kept, and the next run fetches the rest alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.hub.conftest import DEMO
from tests.runtime.hub.hub_server import Fault, HubServer, Repository
from tests.runtime.hub.test_download import NEEDED

WEIGHTS = r"^/tests/[^/]+/[0-9a-f]{40}/model\.safetensors$"  # on the CDN
SIZE = (DEMO / "model.safetensors").stat().st_size
REACHED = 2_000_000  # bytes


def start(name: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tritgguf", "convert", name, str(out), "--type", "tq2_0", "--no-check"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def incomplete(blobs: Path) -> int:
    """Return how much there is of files that are being fetched."""
    return sum(part.stat().st_size for part in blobs.glob("*.incomplete"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.usefixtures("unmeasured")
def test_a_stopped_download_goes_on_where_it_was(
    hub: HubServer, demo: Repository, tmp_path: Path, number: signal.Signals
) -> None:
    fault = Fault(WEIGHTS, after=REACHED, stalls=True)
    hub.faults.append(fault)
    stopped = start(demo.name, tmp_path / "out.gguf")
    assert fault.reached.wait(120)
    blobs = Path(os.environ["HF_HOME"]) / "hub" / f"models--{demo.name.replace('/', '--')}" / "blobs"
    while sum(not blob.suffix for blob in blobs.iterdir()) < len(NEEDED) - 1 or incomplete(blobs) < REACHED:
        assert stopped.poll() is None
        fault.release.wait(0.01)
    stopped.send_signal(number)
    _, err = stopped.communicate(timeout=120)
    fault.release.set()
    assert stopped.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number], err
    assert err == ("" if number == signal.SIGKILL else f"error: interrupted; {tmp_path / 'out.gguf'} was not written\n")
    hub.clear()
    again = start(demo.name, tmp_path / "out.gguf")
    _, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (0, "")
    assert hub.sent(WEIGHTS) == SIZE - REACHED
    assert [request.range for request in hub.asked(WEIGHTS)] == [f"bytes={REACHED}-"]
    assert hub.sent("/resolve-cache/") == 0

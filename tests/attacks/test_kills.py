"""A small run of kill.py: commands that are stopped or whose disk is full leave nothing, and the next run works."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kill.py forks and mounts disks as Linux")
SEED = "7"


def run(*options: str) -> str:
    """Run kill.py and return its table."""
    command = [sys.executable, "-m", "tests.attacks.kill", "--seed", SEED, "--vocabulary", "2000", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"seed {SEED}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(("command", "way"), [("convert", "unnamed"), ("quantize", "named"), ("ollama", "unnamed")])
def test_signals_at_random_points(command: str, way: str) -> None:
    assert "SIGKILL" in run("--commands", command, "--ways", way, "--points", "1", "--disks", "0")


def test_disks_that_are_or_become_full() -> None:
    table = run("--commands", "quantize", "--ways", "unnamed", "--points", "0", "--disks", "2")
    if "can't be mounted" in table:
        pytest.skip("this user can't mount a disk in a namespace of its own")
    assert "disk fills up" in table

"""OpenMP's own word on how long threads ask before they sleep, once the runtime has loaded llama.cpp."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tritgguf.runtime.engine import backend

LOAD = "import tritgguf.runtime.engine.backend"


@pytest.mark.skipif(
    b"OPENMP = 1" not in backend.native.llama_print_system_info(), reason="this llama.cpp is built without OpenMP"
)
@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "20"}, "20"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_how_long_threads_ask(variables: dict[str, str], expected: str) -> None:
    own = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment = {**own, **variables, "OMP_DISPLAY_ENV": "verbose"}
    run = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    said = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", run.stderr)
    assert said[-1] == expected  # sentencepiece brings a libgomp of its own, which is loaded before

"""`python -m tritgguf` has Ctrl-C's exit code wherever it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Python runs it first. It stands for Ctrl-C while a module defines a dataclass, whose text Python executes.
INTERRUPTED = """
import typer

def interrupted(*_):
    exec("raise KeyboardInterrupt")

typer.Typer.__call__ = interrupted
"""


def test_an_interrupt_while_python_executes_a_text(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "tritgguf"], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "")

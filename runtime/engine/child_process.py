"""How a child process runs one of our modules: where native code may end the process, that shall be another one."""

from __future__ import annotations

import os
import sys


def command(module: str) -> tuple[str, ...]:
    """Return what runs the function `main` of one of our modules.

    `-m` would let the child import modules from the current folder, which may be a downloaded model's: its json.py
    would run. `-c` puts the folder on sys.path too, as "", but imports nothing before this removes it. `-P` does the
    same from Python 3.11 on; `-I` would hide what was installed with `pip install --user`.
    """
    code = f"import sys; sys.path[:] = filter(None, sys.path); from {module} import main; sys.exit(main())"
    return (sys.executable, "-c", code)


def environment() -> dict[str, str]:
    """Return this process's environment, without what would slow the child down or open the current folder to it."""
    # Numpy's BLAS, of no use here, would keep a thread per core busy while it starts.
    found = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    if path := os.environ.get("PYTHONPATH"):  # in which an empty part is the current folder too, often by mistake
        found["PYTHONPATH"] = os.pathsep.join(part for part in path.split(os.pathsep) if part not in ("", "."))
    return found

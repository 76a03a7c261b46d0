"""llama-server in a child process, as the peer of `tritgguf serve`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.served import PATIENCE_SECONDS, Served
from tritgguf.runtime.engine.kernels import library


@contextmanager
def llama_server(
    program: Path, model: Path, *, n_slots: int, n_ctx: int, n_threads: int, kernels: str
) -> Iterator[Served]:
    """Run it until the end of the block, with `n_ctx` tokens for each slot, and wait until it answers.

    `kernels` "stock" are llama.cpp's own; it loads tritgguf's as a device otherwise.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
    command += ["-np", str(n_slots), "-c", str(n_ctx * n_slots), "-t", str(n_threads), "-tb", str(n_threads)]
    own = {}
    if kernels != "stock":
        own = {"GGML_BACKEND_PATH": str(library.PATH)}
        command += ["--device", "Ternary"]  # looks for further devices only then
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, env={**os.environ, **own}, stdin=nothing, stdout=nothing, stderr=nothing) as process:
        served = Served(process, f"http://127.0.0.1:{port}")  # type: ignore[arg-type]
        try:
            _wait(served)
            yield served
        finally:
            process.terminate()


def _wait(served: Served) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end and served.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{served.url}/health", timeout=PATIENCE_SECONDS) as answer:
                if json.load(answer)["status"] == "ok":
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("llama-server doesn't answer")

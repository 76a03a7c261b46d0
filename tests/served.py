"""A real `tritgguf serve` in a child process, and raw connections to it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

PATIENCE_SECONDS = 120  # ends what hangs; nothing waits so long on a machine that works


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    key: str = ""

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
            return bytes(response.read())

    def metric(self, name: str) -> float:
        """Return a metric's sum over the models."""
        lines = self.get("/metrics").decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"tritgguf_{name}{{"))

    def wait_until(self, name: str, value: float) -> None:
        """Wait until a metric has that value."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.metric(name) != value:
            assert time.monotonic() < end, f"{name} is {self.metric(name)}, expected {value}"
            time.sleep(0.02)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_SECONDS)

    def post(self, path: str, body: object, *headers: str) -> socket.socket:
        """Send a request and return its connection, whose answer is still to be read."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", f"Host: {self.url.removeprefix('http://')}", f"Content-Length: {len(data)}"]
        connection = self.connect()
        connection.sendall("\r\n".join([*lines, *headers, "", ""]).encode() + data)
        return connection


@contextmanager
def serve(
    *arguments: str | Path, env: dict[str, str] | None = None, program: Sequence[str] = ("tritgguf",)
) -> Iterator[Served]:
    """Run the server on a free port until the end of the block, and check that nothing was wrong with it.

    `program` is a module that runs tritgguf, and its own arguments.
    """
    command = [sys.executable, "-m", *program, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    with process:
        try:
            yield Served(process, _url(process))
        finally:
            process.terminate()
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert "Traceback" not in errors, errors
    assert "internal error" not in errors, errors


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("http://"):
            return line.split(": ")[0]
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())

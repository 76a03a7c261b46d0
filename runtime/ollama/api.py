"""A client of the parts of Ollama's HTTP API that create a model and chat with it.

The API: https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from tritgguf.converter.core.progress import Progress, Step, counted
from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.address import HOST_VARIABLE, Address
from tritgguf.runtime.ollama.connection import PATIENCE, WORK_SECONDS, Patience, Route

_CHUNK_BYTES = 1 << 20
_DISK_FULL = ("no space left on device", "not enough space on the disk", "disk quota exceeded")
# Ollama 0.30 and newer copy every file with llama-quantize; what that printed is in the server's log alone.
_COPY_FAILED = ("failed to validate gguf with llama-quantize", "llama-quantize failed")


class Ollama:
    """A client of one server; each call opens its own connection. The methods raise OllamaError."""

    def __init__(self, address: Address | None = None, *, patience: Patience = PATIENCE) -> None:
        self.address = address or Address(os.environ.get(HOST_VARIABLE, ""))
        self.route = Route(self.address, patience)

    def version(self) -> str:
        """Return the server's version; raise NotRunningError if no server answers."""
        version = self._json("GET", "/api/version").get("version")
        if not isinstance(version, str):
            raise OllamaError(
                f"the server at {self.route} isn't Ollama: /api/version has no version; check {HOST_VARIABLE}"
            )
        return version

    def has_model(self, name: str) -> bool:
        """Whether a model of that name exists."""
        with self.route.answer("POST", "/api/show", _body({"model": name})) as answer:
            if answer.status == http.client.NOT_FOUND:
                return False
            self._require_ok(answer, "/api/show")
            return True

    def has_blob(self, digest: str) -> bool:
        """Whether the server has the file with that digest, "sha256:…"."""
        with self.route.answer("HEAD", f"/api/blobs/{quote(digest)}") as answer:
            if answer.status == http.client.NOT_FOUND:
                return False
            self._require_ok(answer, "/api/blobs")
            return True

    def send_blob(self, path: Path, digest: str, progress: Progress | None = None) -> None:
        """Send a file; the server checks that it has that digest."""
        n_bytes = path.stat().st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(n_bytes)}
        with path.open("rb") as file:
            sent = _Counting(file, counted(progress, "sending", n_bytes))
            with self.route.answer(
                "POST", f"/api/blobs/{quote(digest)}", sent, headers, seconds=WORK_SECONDS
            ) as answer:
                self._require_ok(answer, path.name)

    def create(self, request: Mapping[str, Any], progress: Progress | None = None) -> None:
        """Create a model from what Modelfile.request returns; `progress` gets the server's own stages."""
        last = ""
        for line in self._lines("/api/create", request):
            last = str(line.get("status", ""))
            if progress:
                done, total = (number if type(number := line.get(key)) is int else 0 for key in ("completed", "total"))
                progress(last, done, total)
        if last != "success":
            model = request["model"]
            raise OllamaError(f"Ollama stopped creating {model} after {last or 'nothing'!r}; see Ollama's log")

    def chat(self, name: str, messages: Sequence[Mapping[str, str]], *, max_tokens: int) -> str:
        """Return the model's answer with its thoughts before it, at temperature 0."""
        options = {"num_predict": max_tokens, "temperature": 0}
        body = {"model": name, "messages": list(messages), "stream": True, "options": options}
        parts = []
        done = False
        for line in self._lines("/api/chat", body):
            message = message if isinstance(message := line.get("message"), dict) else {}
            parts.append(str(message.get("thinking") or "") + str(message.get("content") or ""))
            done = bool(line.get("done"))
        if not done:
            raise OllamaError(f"Ollama broke off in the middle of {name}'s answer; see Ollama's log")
        return "".join(parts)

    def _json(self, method: str, path: str) -> dict[str, Any]:
        with self.route.answer(method, path) as answer:
            self._require_ok(answer, path)
            return self._object(answer.read())

    def _lines(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        with self.route.answer("POST", path, _body(body), seconds=WORK_SECONDS) as answer:
            self._require_ok(answer, path)
            for text in answer:
                if text.strip():
                    line = self._object(text)
                    if "error" in line:
                        raise OllamaError(self._refusal(str(line["error"]), path))
                    yield line

    def _require_ok(self, answer: http.client.HTTPResponse, what: str) -> None:
        if answer.status in (http.client.OK, http.client.CREATED):
            return
        text = answer.read()
        try:
            reason = str(json.loads(text)["error"])
        except (ValueError, LookupError, TypeError):
            reason = f"status {answer.status} {answer.reason}"
        if answer.status == http.client.UNAUTHORIZED:
            reason += f"; write user and password into {HOST_VARIABLE}: {self.address.scheme}://USER:PASSWORD@HOST:PORT"
        raise OllamaError(self._refusal(reason, what))

    def _refusal(self, reason: str, what: str) -> str:
        line = " ".join(reason.split())
        if any(sign in line.lower() for sign in _DISK_FULL):
            return (
                f"Ollama's disk is full ({line}): make room where it keeps its models ($OLLAMA_MODELS), then try again"
            )
        if any(sign in line.lower() for sign in _COPY_FAILED):
            return (
                f"Ollama couldn't copy the file ({line}): most likely its disk is full, since creating a model takes "
                "about three times the file's size where it keeps its models ($OLLAMA_MODELS), or its llama.cpp "
                "doesn't load the file; Ollama's log says which"
            )
        return f"Ollama at {self.route} refuses {what}: {line}"

    def _object(self, text: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            raise OllamaError(f"{self.route} answers {text[:60]!r} instead of a JSON object; is it another program?")
        return parsed


class _Counting:
    """A file that reports progress when it is read; http.client calls `read` to send it."""

    def __init__(self, file: BinaryIO, step: Step) -> None:
        self.file = file
        self.step = step

    def read(self, _size: int = -1) -> bytes:
        data = self.file.read(_CHUNK_BYTES)
        self.step(len(data))
        return data


def digest_of(path: Path, progress: Progress | None = None) -> str:
    """Return the name that Ollama gives a file: "sha256:" and its digest in hex."""
    digest = hashlib.sha256()
    step = counted(progress, "hashing", path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            step(len(chunk))
    return f"sha256:{digest.hexdigest()}"


def _body(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode()

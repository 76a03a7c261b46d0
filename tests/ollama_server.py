"""An HTTP server with Ollama's API, written after reading Ollama's sources: strict about digests, order and bodies.

It keeps blobs and models in memory and refuses what Ollama refuses. It answers chats by running the blob in the real
runtime, on the prompt that Go renders with the model's template (recorded in tests/golden/go_prompts.json).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gguf

import tritgguf.runtime
from tests import paths
from tests.ollama_prompt import ollama_prompt

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The fields of Ollama's api.Options that a Modelfile of this project may set, and their types.
PARAMETERS = {
    "stop": list,
    "num_ctx": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
}
REFUSED_SINCE_0_31_2 = ("TQ1_0", "TQ2_0", "Q2_0")
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
CERTIFICATE = paths.GOLDEN / "localhost.pem"
NOT_COPIED = (
    "failed to validate GGUF with llama-quantize without compatibility patches: llama-quantize failed: exit status 1"
)
NO_SPACE = "write /root/.ollama/models/blobs/sha256-partial: no space left on device"


def free_port() -> int:
    """Return the number of a port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def type_error(file: Path) -> str:
    """Return the error for a tensor type that Ollama 0.31.2 and newer refuse."""
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type.name in REFUSED_SINCE_0_31_2:
            return f'unsupported tensor "{tensor.name}" size overflows'
    return ""


def split_error(files: list[Path]) -> str:
    """Return the error for parts of a split file that aren't all there, or whose names don't say what they are."""
    places = []
    for file in files:
        fields = gguf.GGUFReader(file).fields
        if "split.count" not in fields:
            return "" if len(files) == 1 else "more than one model"
        number, count = (int(fields[key].contents()) for key in ("split.no", "split.count"))
        match = PART.fullmatch(file.name)
        if not match:
            return f'split GGUF "{file.name}" must use llama.cpp split filename pattern'
        if (int(match[2]) - 1, int(match[3])) != (number, count):
            return f'split GGUF "{file.name}" filename does not match metadata'
        places.append((match[1], number, count))
    if len(files) != places[0][2]:
        return f'split GGUF "{files[0].name}" has {len(files)} shards, expected {places[0][2]}'
    return "" if [number for _, number, _ in places] == list(range(len(files))) else "duplicate shard index"


@dataclass
class State:
    """What the server holds and the requests that it got; `fails` names a failure to act out.

    `login` is the "user:password" that requests must have, `path` what comes before /api/, and `silent` the beginning
    of the paths that get no answer.
    """

    version: str = "0.34.1"
    fails: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    address: str = ""
    login: str = ""
    path: str = ""
    silent: str = ""
    ends: threading.Event = field(default_factory=threading.Event)


@contextmanager
def ollama_server(*, https: bool = False, **settings: Any) -> Iterator[State]:
    """Serve on a free local port until the block ends."""
    state = State(**settings)

    class Handler(_Handler):
        pass

    Handler.state = state
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if https:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        state.ends.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True

    def _refused(self) -> bool:
        """Note the request; answer it if it lacks the login, or never if the server is silent about it."""
        self.state.calls.append(f"{self.command} {self.path}")
        if not self.path.startswith(f"{self.state.path}/api/"):
            self._answer(404, {"error": "404 page not found"})
            return True
        self.path = self.path.removeprefix(self.state.path)
        if self.state.silent and self.path.startswith(self.state.silent):
            self.close_connection = True
            return self.state.ends.wait(60)
        expected = f"Basic {base64.b64encode(self.state.login.encode()).decode()}" if self.state.login else None
        if self.headers["Authorization"] == expected:
            return False
        self.close_connection = True
        self._bytes(401, b"<html>who are you?</html>", close=True)
        return True

    def do_GET(self) -> None:
        if self._refused():
            return
        if self.path != "/api/version":
            self._answer(404, {"error": "404 page not found"})
        elif self.state.fails == "another program":
            self._bytes(200, b"<html>hello</html>")
        else:
            self._answer(200, {"version": self.state.version})

    def do_HEAD(self) -> None:
        if self._refused():
            return
        digest = self.path.removeprefix("/api/blobs/").replace("%3A", ":")
        if not DIGEST.fullmatch(digest):
            self._bytes(400, b"", length="0")
        else:
            self._bytes(200 if digest in self.state.blobs else 404, b"", length="0")

    def do_POST(self) -> None:
        if self._refused():
            return
        if self.path.startswith("/api/blobs/"):
            self._blob(self.path.removeprefix("/api/blobs/").replace("%3A", ":"))
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        route = {"/api/show": self._show, "/api/create": self._create, "/api/chat": self._chat}
        route[self.path](body)

    def _blob(self, digest: str) -> None:
        length = self.headers["Content-Length"]
        if not DIGEST.fullmatch(digest) or length is None:
            self._answer(400, {"error": "invalid digest format"})
            return
        if (
            self.state.fails == "disk full, unread"
        ):  # answers without reading the body, which breaks the client's sending
            self.close_connection = True
            self._answer(500, {"error": NO_SPACE}, close=True)
            return
        if self.state.fails == "connection lost":
            self.close_connection = True
            self.connection.close()
            return
        data = self.rfile.read(int(length))
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if self.state.fails == "disk full":
            self._answer(500, {"error": NO_SPACE})
        elif found != digest or self.state.fails == "damaged on the way":
            self._answer(400, {"error": f'digest mismatch, expected "{digest}", got "{found[:-4]}ffff"'})
        else:
            self.state.blobs[digest] = data
            self._bytes(201, b"")

    def _show(self, body: dict[str, Any]) -> None:
        if not re.fullmatch(r"[\w.:/-]+", body["model"]):
            self._answer(400, {"error": "invalid model name"})
        elif body["model"] not in self.state.models:
            self._answer(404, {"error": f"model '{body['model']}' not found"})
        else:
            self._answer(200, {"modelfile": "FROM …"})

    def _create(self, body: dict[str, Any]) -> None:
        surplus = body.keys() - {"model", "files", "template", "system", "license", "parameters", "stream"}
        files = body.get("files") or {}
        if surplus or not files or not isinstance(body.get("model"), str):
            self._answer(400, {"error": f"neither 'from' or 'files' was specified, or surplus {surplus}"})
            return
        for path, digest in files.items():
            if path.startswith(("/", ".")) or "\\" in path or ":" in path:
                self._answer(400, {"error": f"file path must be relative: {path}"})
                return
            if digest not in self.state.blobs:
                self._answer(400, {"error": f"blob not found for {path} (digest {digest})"})
                return
        self._stream(self._creating(body, files))

    def _creating(self, body: dict[str, Any], files: dict[str, str]) -> Iterator[dict[str, Any]]:
        yield {"status": "parsing GGUF"}
        if self.state.fails == "disk full while creating":
            yield {"error": NO_SPACE}
            return
        with tempfile.TemporaryDirectory() as folder:
            written = self._written(files, Path(folder))
            error = split_error(written) or next(filter(None, map(type_error, written)), "")
        if error or self.state.fails == "copy":
            yield {"error": error or NOT_COPIED}
            return
        for name, value in body.get("parameters", {}).items():
            if name not in PARAMETERS:
                yield {"error": f"unknown parameter '{name}'"}
                return
            assert type(value) is PARAMETERS[name] or (PARAMETERS[name] is float and type(value) is int), name
        yield {"status": f"using existing layer {next(iter(files.values()))}"}
        if self.state.fails == "stops":
            return
        if self.state.fails == "odd numbers":
            yield {"status": "writing manifest", "completed": "some", "total": [1]}
        self.state.models[body["model"]] = body
        yield {"status": "writing manifest"}
        yield {"status": "success"}

    def _written(self, files: dict[str, str], folder: Path) -> list[Path]:
        """Write the blobs of a model's files under their names, which are in order then."""
        for name, digest in files.items():
            (folder / name).write_bytes(self.state.blobs[digest])
        return sorted(folder.iterdir())

    def _chat(self, body: dict[str, Any]) -> None:
        model = self.state.models.get(body["model"])
        if model is None:
            self._answer(404, {"error": f"model '{body['model']}' not found"})
        elif self.state.fails == "model dies":
            self._answer(500, {"error": "llama runner process has terminated: exit status 2"})
        else:
            self._stream(self._answering(model, body))

    def _answering(self, model: dict[str, Any], body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        messages = body["messages"]
        if model.get("system") and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": model["system"]}, *messages]
        prompt = ollama_prompt(model["template"], messages)
        self.state.prompts.append(prompt)
        parameters = model["parameters"]
        with tempfile.TemporaryDirectory() as folder:
            path = self._written(model["files"], Path(folder))[0]
            n_ctx, stop = parameters["num_ctx"], parameters["stop"]
            with tritgguf.runtime.open(path, n_ctx=n_ctx, n_threads=1) as session:
                options = {"max_tokens": body["options"]["num_predict"], "temperature": 0.0}
                for piece in session.generate(prompt, stop=stop, **options):
                    yield {"message": {"role": "assistant", "content": piece}, "done": False}
                    if self.state.fails == "breaks off":
                        return
        yield {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}

    def _answer(self, status: int, body: dict[str, Any], *, close: bool = False) -> None:
        self._bytes(status, json.dumps(body).encode(), close=close)

    def _bytes(self, status: int, data: bytes, *, length: str | None = None, close: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", length or str(len(data)))
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, lines: Iterator[dict[str, Any]]) -> None:
        """Send lines of JSON in HTTP chunks, as Ollama does."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            data = json.dumps(line).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

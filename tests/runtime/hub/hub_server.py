"""A hub on this machine, for the real client of huggingface_hub: its API, files on a "CDN" of another port, and faults.

It answers as huggingface.co does, after the client's sources and the documentation of the hub's API: the commit and the
files of a repository, small files from itself, large ones (LFS) by a redirect, ranges, gated and private repositories,
and errors with X-Error-Code. `requests` holds all that it was asked, and how many bytes it sent.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests import hub_endpoint

LFS_BYTES = 10_000  # files of at least that size are stored outside the repository
TOKENS = {"hf_good": True, "hf_poor": False}  # whether the token's account has access to gated repositories
CHUNK_BYTES = 1 << 14
NAME = "((?:datasets/)?[^/]+/[^/]+)"
BAD_TOKEN = "Invalid credentials in Authorization header"


@dataclass(frozen=True)
class Hollow:
    """A file of `size` bytes of which only the start is there; the others would be zeros, and asking for one fails."""

    start: bytes
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        first, end, _ = part.indices(self.size)
        assert end <= len(self.start), f"bytes {first} to {end} were asked for"
        return self.start[first:end]


@dataclass
class Repository:
    """The files of each commit, by path, and the commits of branches and tags; `listed` are sizes that are wrong."""

    name: str  # of a dataset, datasets/org/name
    commits: dict[str, dict[str, bytes | Hollow]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    disabled: bool = False
    listed: dict[str, int] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes | Hollow], *refs: str) -> str:
        """Add a commit that `main`, or the `refs`, point to; return its name."""
        named = json.dumps({path: _digest(data) for path, data in files.items()}, sort_keys=True)
        commit = hashlib.sha1(f"{self.name}{len(self.commits)}{named}".encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs |= dict.fromkeys(refs or ("main",), commit)
        return commit


@dataclass
class Request:
    """What the server was asked: `place` is "hub" or "cdn", `n_bytes` the bytes of the answer's body."""

    method: str
    place: str
    path: str
    range: str | None
    token: str | None
    n_bytes: int = 0


@dataclass
class Fault:
    """What the next `times` answers to GET requests whose path the pattern is found in do instead.

    A `status` is answered; or the connection breaks after `after` bytes of the body, or stalls there until `release`.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    stalls: bool = False
    ignores_range: bool = False
    spoils: bool = False
    times: int = 1
    reached: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """The server; `add` makes a repository, `faults` are for the next answers."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self._cdn = _listening(self, "cdn", None)
        self.cdn = f"http://127.0.0.1:{self._cdn.server_port}"
        self._hub = _listening(self, "hub", hub_endpoint.SOCKET)

    def add(self, name: str, files: Mapping[str, bytes | Hollow] | None = None, **options: Any) -> Repository:
        """Add a repository, with a commit of `files` on its main branch."""
        repository = self.repositories[name] = Repository(name, **options)
        if files is not None:
            repository.commit(files)
        return repository

    def clear(self) -> None:
        """Forget what was asked, and the faults that are left."""
        self.requests.clear()
        self.faults.clear()

    def sent(self, pattern: str) -> int:
        """Return the number of bytes sent for the paths in which the pattern is found."""
        return sum(request.n_bytes for request in self.requests if re.search(pattern, request.path))

    def asked(self, pattern: str, method: str = "GET") -> list[Request]:
        """Return the requests of that method in whose paths the pattern is found."""
        return [request for request in self.requests if request.method == method and re.search(pattern, request.path)]

    def fault_for(self, path: str) -> Fault | None:
        """Return the fault that is due for a path, and count it."""
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None


@cache
def server() -> HubServer:
    """Return the server of this process: it listens until the process ends."""
    return HubServer()


def _listening(hub: HubServer, place: str, reserved: socket.socket | None) -> ThreadingHTTPServer:
    class Handler(_Handler):
        server_state, server_place = hub, place

    server = _Server(("127.0.0.1", 0), Handler, bind_and_activate=reserved is None)
    if reserved is not None:
        server.socket.close()
        server.socket = reserved
        server.server_address = reserved.getsockname()
        server.server_port = hub_endpoint.PORT
        server.server_activate()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that leaves in the middle is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: HubServer
    server_place: str

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.asked = Request(self.command, self.server_place, parts.path, self.headers.get("Range"), token)
        self.server_state.requests.append(self.asked)
        self.fault = self.server_state.fault_for(parts.path) if self.command == "GET" else None
        if self.fault is not None and self.fault.status is not None:
            self._answer(self.fault.status, b"{}", **self.fault.headers)
        elif self.server_place == "cdn":
            self._file(parts.path)
        elif match := re.fullmatch(r"/api/(?:models/|(datasets/))(.+)", parts.path):
            self._api(match[1] or "", match[2], parse_qs(parts.query))
        elif match := re.fullmatch(rf"/{NAME}/resolve/(.+?)/(.+)", parts.path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]))
        elif match := re.fullmatch(
            r"/api/resolve-cache/(?:models/)?((?:datasets/)?[^/]+/[^/]+)/([^/]+)/(.+)", parts.path
        ):
            self._cached(self.server_state.repositories[match[1]], match[2], unquote(match[3]))
        else:
            self._error(404, "", "Not found")

    def _readable(self, name: str) -> Repository | None:
        """Return a repository that the request's token may see; answer otherwise."""
        token = self.asked.token
        repository = self.server_state.repositories.get(name)
        if token is not None and token not in TOKENS:
            self._error(401, "", BAD_TOKEN)
        elif repository is None or (repository.private and not TOKENS.get(token or "")):
            self._error(401 if token is None else 404, "RepoNotFound", "Repository not found")
        elif repository.disabled:
            self._error(403, "", "Access to this resource is disabled.")
        else:
            return repository
        return None

    def _commit(self, repository: Repository, revision: str) -> str | None:
        commit = repository.refs.get(revision, revision)
        if commit in repository.commits:
            return commit
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _api(self, kind: str, path: str, query: dict[str, list[str]]) -> None:
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        if match is None:
            self._error(404, "", "Not found")
            return
        repository = self._readable(kind + match[1])
        commit = repository and self._commit(repository, unquote(match[3] or "main"))
        if repository is None or commit is None:
            return
        listed = [_listed(repository, path, data) for path, data in sorted(repository.commits[commit].items())]
        if match[2] == "tree":
            self._answer(200, json.dumps([{"type": "file", **file} for file in listed]).encode())
            return
        siblings = [_sibling(file) if "blobs" in query else {"rfilename": file["path"]} for file in listed]
        name = repository.name.removeprefix(kind)
        info = {"id": name, **({} if kind else {"modelId": name}), "sha": commit, "siblings": siblings, "tags": []}
        gated = "manual" if repository.gated else False
        flags = {"private": repository.private, "gated": gated, "disabled": False, "downloads": 0, "likes": 0}
        self._answer(200, json.dumps(info | flags).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._readable(name)
        commit = repository and self._commit(repository, revision)
        if repository is None or commit is None:
            return
        if repository.gated and not TOKENS.get(self.asked.token or ""):
            status = 401 if self.asked.token is None else 403
            self._error(status, "GatedRepo", f"Access to model {name} is restricted.")
        elif path not in repository.commits[commit]:
            self._error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        elif _is_lfs(data := repository.commits[commit][path]):
            digest = _digest(data)
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
            place = f"{self.server_state.cdn}/{name}/{commit}/{quote(path)}?signature=s3cret"
            self._answer(302, b"", Location=place, **linked)
        else:
            kind = "" if name.startswith("datasets/") else "models/"
            place = f"/api/resolve-cache/{kind}{name}/{commit}/{quote(path)}"
            self._answer(307, b"", Location=place, **{"X-Repo-Commit": commit})

    def _cached(self, repository: Repository, commit: str, path: str) -> None:
        data = repository.commits[commit][path]
        self._body(data, ETag=f'"{_git_blob(data)}"', **{"X-Repo-Commit": commit})

    def _file(self, path: str) -> None:
        match = re.fullmatch(rf"/{NAME}/([^/]+)/(.+)", unquote(path))
        assert match is not None
        self._body(self.server_state.repositories[match[1]].commits[match[2]][match[3]])

    def _body(self, data: bytes | Hollow, **headers: str) -> None:
        """Send a file, or the range of it that was asked for."""
        status, fault = 200, self.fault
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.asked.range or "")
        if match is not None and not (fault and fault.ignores_range):
            first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            if first >= len(data):
                self._answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[first : last + 1]
        if fault is not None and fault.spoils:
            data = bytes(len(data))
        self._answer(status, data[:], **headers, **{"Accept-Ranges": "bytes"})

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        coded = {"X-Error-Code": code} if code else {}
        self._answer(
            status, json.dumps({"error": message}).encode(), **coded, **{"X-Error-Message": message}, **headers
        )

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in self._pieces(body):
            self.asked.n_bytes += len(piece)
            self.wfile.write(piece)

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        """Yield the body in pieces; break the connection, or stall, where a fault says so."""
        after = self.fault.after if self.fault is not None else None
        view = memoryview(body)
        end = len(view) if after is None else min(after, len(view))
        for start in range(0, end, CHUNK_BYTES):
            yield bytes(view[start : min(start + CHUNK_BYTES, end)])
        if self.fault is None or after is None:
            return
        self.wfile.flush()
        self.fault.reached.set()
        if self.fault.stalls:
            self.fault.release.wait(60)
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


def _is_lfs(data: bytes | Hollow) -> bool:
    return len(data) >= LFS_BYTES


def _digest(data: bytes | Hollow) -> str:
    return hashlib.sha256(data.start if isinstance(data, Hollow) else data).hexdigest()


def _git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _listed(repository: Repository, path: str, data: bytes | Hollow) -> dict[str, Any]:
    size = repository.listed.get(path, len(data))
    entry: dict[str, Any] = {"path": path, "size": size, "oid": _git_blob(b"pointer" if _is_lfs(data) else data[:])}
    if _is_lfs(data):
        entry["lfs"] = {"oid": _digest(data), "size": size, "pointerSize": 134}
    return entry


def _sibling(file: dict[str, Any]) -> dict[str, Any]:
    sibling = {"rfilename": file["path"], "size": file["size"], "blobId": file["oid"]}
    if lfs := file.get("lfs"):
        sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
    return sibling

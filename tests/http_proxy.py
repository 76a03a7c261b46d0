"""A small HTTP proxy on a real socket: it forwards requests, and tunnels HTTPS."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """Where the proxy listens, the real addresses of the hosts that it knows, and the requests that it got.

    `login` is the "user:password" that it asks for.
    """

    hosts: dict[str, str]
    login: str = ""
    address: str = ""
    calls: list[str] = field(default_factory=list)


@contextmanager
def http_proxy(hosts: dict[str, str], login: str = "") -> Iterator[Proxy]:
    """Serve on a free local port until the block ends; `hosts` maps "name:port" to an address such as 127.0.0.1:80."""
    state = Proxy(hosts, login)

    class Handler(_Handler):
        proxy = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def _target(self, netloc: str) -> str | None:
        """Return the real address of a host; None, after an answer, if it is unknown or the request isn't allowed."""
        self.proxy.calls.append(f"{self.command} {self.path}")
        wanted = f"Basic {base64.b64encode(self.proxy.login.encode()).decode()}" if self.proxy.login else None
        if self.headers["Proxy-Authorization"] != wanted:
            self.send_error(407)
            return None
        if netloc not in self.proxy.hosts:
            self.send_error(502)
            return None
        return self.proxy.hosts[netloc]

    def _forward(self) -> None:
        url = urlsplit(self.path)
        target = self._target(url.netloc)
        if target is None:
            return
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        headers = {name: text for name, text in self.headers.items() if not name.lower().startswith("proxy-")}
        connection = http.client.HTTPConnection(target, timeout=60)
        connection.request(self.command, url.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._forward()

    def do_HEAD(self) -> None:
        self._forward()

    def do_POST(self) -> None:
        self._forward()

    def do_CONNECT(self) -> None:
        target = self._target(self.path)
        if target is None:
            return
        host, _, port = target.partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as server:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: server, server: self.connection}
            while True:
                for ready in select.select(list(ends), [], [], 60)[0]:
                    data = ready.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[ready].sendall(data)

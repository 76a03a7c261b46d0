"""Requests over HTTPS, through proxies and with passwords, to real servers; and what silent ones lead to."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.http_proxy import http_proxy
from tests.ollama_server import CERTIFICATE, ollama_server
from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama import connection
from tritgguf.runtime.ollama.address import Address
from tritgguf.runtime.ollama.api import Ollama

DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture(autouse=True)
def _no_proxy_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def use_all(client: Ollama) -> None:
    """Send one request of each kind: GET, HEAD, POST with a body, and POST with lines as the answer."""
    assert client.version() == "0.34.1"
    assert not client.has_blob(DIGEST)
    assert not client.has_model("none")
    with pytest.raises(OllamaError, match="neither 'from' or 'files'"):
        client.create({"model": "x", "files": {}})


def test_a_password_is_sent_and_never_printed() -> None:
    with ollama_server(login="me:p/a:ss") as server:
        use_all(Ollama(Address(f"http://me:p%2Fa:ss@{server.address}")))
        for login in ("", "me:wrong-secret@"):
            with pytest.raises(OllamaError, match=r"status 401.*http://USER:PASSWORD@HOST:PORT") as refused:
                Ollama(Address(f"http://{login}{server.address}")).version()
            assert "secret" not in str(refused.value)


def test_a_path_before_the_api() -> None:
    with ollama_server(path="/my%20ollama", login="me:x") as server:
        use_all(Ollama(Address(f"http://me:x@{server.address}/my ollama/")))


def test_both_loopback_addresses_are_tried_for_all_addresses() -> None:
    """With OLLAMA_HOST=[::] a server listens on IPv4 alone if IPv6 is switched off."""
    with ollama_server() as server:
        use_all(Ollama(Address(f"http://[::]:{server.address.partition(':')[2]}")))


# --- HTTPS -----------------------------------------------------------------------------------------------------------


def test_https(monkeypatch: pytest.MonkeyPatch) -> None:
    with ollama_server(https=True, login="me:pass") as server:
        address = Address(f"https://me:pass@localhost:{server.address.partition(':')[2]}")
        with pytest.raises(OllamaError, match=r"certificate of https://localhost:.* isn't accepted \(self.signed"):
            Ollama(address).version()
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        use_all(Ollama(address))


def test_https_to_a_server_without_it() -> None:
    with ollama_server() as server, pytest.raises(OllamaError, match=r"no HTTPS connection to https://.*write http://"):
        Ollama(Address(f"https://{server.address}")).version()


# --- proxies ---------------------------------------------------------------------------------------------------------


def test_http_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        ollama_server(login="me:pass", path="/x") as server,
        http_proxy({"ollama.example:80": server.address}) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        use_all(Ollama(Address("http://me:pass@ollama.example/x")))
    assert proxy.calls[0] == "GET http://ollama.example:80/x/api/version"
    assert len(proxy.calls) == len(server.calls) == 4


def test_https_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        ollama_server(https=True, login="me:pass") as server,
        http_proxy({"ollama.example:443": server.address}, login="you:word") as proxy,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://you:word@{proxy.address}")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        use_all(Ollama(Address("https://me:pass@ollama.example")))
    assert proxy.calls == ["CONNECT ollama.example:443"] * 4
    assert "GET /api/version" in server.calls


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(("login", "reason"), [("you:secret", "502"), ("you:wrong-secret", "407")])
def test_a_proxy_that_refuses(scheme: str, login: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy({}, login="you:secret") as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://{login}@{proxy.address}")
        with pytest.raises(OllamaError, match=rf"through the proxy http://{proxy.address}\).*{reason}") as refused:
            Ollama(Address(f"{scheme}://ollama.example")).version()
    assert "secret" not in str(refused.value)


def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with http_proxy({}) as proxy:
        address = proxy.address
    monkeypatch.setenv("HTTP_PROXY", f"you:secret@{address}")
    with pytest.raises(OllamaError, match=r"refused; check HTTP_PROXY .*or set NO_PROXY=ollama\.example") as refused:
        Ollama(Address("ollama.example")).version()
    assert "secret" not in str(refused.value)


# --- silence ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in taken:
            one.close()


@pytest.mark.parametrize(("path", "call"), [("version", "version"), ("show", "has_model"), ("blobs", "has_blob")])
def test_small_questions_have_a_short_time_limit(path: str, call: str, silent: str) -> None:
    """And the long one is untouched: if it were used, this test would take an hour."""
    assert connection.WORK_SECONDS == 3600.0
    client = Ollama(Address(silent), patience=connection.Patience(answer_seconds=0.2))
    with pytest.raises(OllamaError, match=rf"didn't answer /api/{path}.* for 0\.2 seconds; see Ollama's log"):
        getattr(client, call)(*([] if call == "version" else [DIGEST]))

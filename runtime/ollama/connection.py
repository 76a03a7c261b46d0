"""One HTTP request to Ollama's server: over HTTPS or not, through a proxy or not, and what went wrong in words."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.address import HOST_VARIABLE, Address, proxy_for

# For what the server first sends, hashes, copies or loads many gigabytes.
WORK_SECONDS = 3600.0


class NotRunningError(OllamaError):
    """No server answers at Ollama's address."""


class Body(Protocol):
    """A request's body that is read while it is sent."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, for a connection, and for what the server answers from memory."""

    connect_seconds: float = 10.0
    answer_seconds: float = 30.0


PATIENCE = Patience()


class Route:
    """The way to a server; each request opens its own connection."""

    def __init__(self, address: Address, patience: Patience = PATIENCE) -> None:
        self.address = address
        self.patience = patience
        self.proxy = proxy_for(address)

    def __str__(self) -> str:
        return f"{self.address} (through the proxy {self.proxy})" if self.proxy else str(self.address)

    @contextlib.contextmanager
    def answer(
        self,
        method: str,
        path: str,
        body: bytes | Body | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        seconds: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and give the answer; raise OllamaError, NotRunningError if no server is there.

        `seconds` is how long the server may be silent, the patience's by default.
        """
        seconds = seconds or self.patience.answer_seconds
        connection = self._connected()
        try:
            connection.sock.settimeout(seconds)
            with contextlib.suppress(
                BrokenPipeError, ConnectionResetError
            ):  # a server that stops reading still answers
                connection.request(method, self._target(path), body, self._headers(headers or {}))
            yield connection.getresponse()
        except TimeoutError as error:
            raise OllamaError(
                f"Ollama at {self} didn't answer {path} for {seconds:g} seconds; see Ollama's log, or restart it"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise OllamaError(
                f"the connection to Ollama at {self} broke at {path} ({_reason(error)}); see Ollama's log"
            ) from error
        finally:
            connection.close()

    @property
    def _is_forwarded(self) -> bool:
        """Whether the proxy reads the requests, which it can't inside a tunnel for HTTPS."""
        return self.proxy is not None and self.address.scheme == "http"

    def _target(self, path: str) -> str:
        return f"{self.address}{path}" if self._is_forwarded else f"{self.address.path}{path}"

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        own = {"Authorization": self.address.authorization} if self.address.authorization else {}
        return {**headers, **own, **(self._proxy_headers() if self._is_forwarded else {})}

    def _proxy_headers(self) -> dict[str, str]:
        login = self.proxy.authorization if self.proxy else None
        return {"Proxy-Authorization": login} if login else {}

    def _connected(self) -> http.client.HTTPConnection:
        """Return an open connection to the first host that takes one."""
        last: OSError | None = None
        for host in self.address.hosts:
            connection = self._connection(host)
            try:
                connection.connect()
            except OSError as error:
                connection.close()
                last = error
            else:
                return connection
        assert last is not None
        raise self._failure(last) from last

    def _connection(self, host: str) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.address.scheme == "https" else http.client.HTTPConnection
        if self.proxy is None:
            return kind(host, self.address.port, timeout=self.patience.connect_seconds)
        connection = kind(self.proxy.host, self.proxy.port, timeout=self.patience.connect_seconds)
        if not self._is_forwarded:
            connection.set_tunnel(host, self.address.port, self._proxy_headers())
        return connection

    def _failure(self, error: OSError) -> OllamaError:
        """Return the error for a connection that couldn't be opened."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return OllamaError(
                f"the certificate of {self} isn't accepted ({error.verify_message}); if you trust it, set "
                "SSL_CERT_FILE to a file with the certificate of its authority"
            )
        if isinstance(error, ssl.SSLError):
            return OllamaError(
                f"no HTTPS connection to {self} ({_reason(error)}); if the server has no certificate, write http:// in "
                f"{HOST_VARIABLE}"
            )
        if self.proxy is not None:
            return OllamaError(
                f"no connection to Ollama at {self}: {_reason(error)}; check {self.proxy.variable} and "
                f"{HOST_VARIABLE}, or set NO_PROXY={self.address.host} to connect without the proxy"
            )
        return NotRunningError(
            f"no Ollama at {self} ({_reason(error)}); start it with `ollama serve`, or set {HOST_VARIABLE} to where "
            "it runs"
        )


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__

"""Where Ollama listens, read from OLLAMA_HOST, and the HTTP proxy on the way there."""

from __future__ import annotations

import base64
import contextlib
import re
from ipaddress import ip_address, ip_network
from urllib.parse import quote, unquote
from urllib.request import getproxies_environment

from tritgguf.converter.errors import OllamaError

HOST_VARIABLE = "OLLAMA_HOST"
DEFAULT_PORT = 11434
_PORTS = {"http": 80, "https": 443}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST_NAME = re.compile(r"[\w.-]*")
_SAFE_IN_PATH = "/%!$&'()*+,;=:@~"


class Address:
    """A server, from a text such as OLLAMA_HOST: host, host:port, :port or scheme://user:password@host:port/path.

    `authorization` is the header's value for user and password, None without them. They are in no other attribute and
    in no message: the parts of a text that can't be read may be a password too, so messages don't quote it.

    Raises OllamaError if the text isn't an address. `variable` is its name in messages, `default_port` the port of a
    text without a scheme.
    """

    def __init__(self, text: str = "", variable: str = HOST_VARIABLE, default_port: int | None = None) -> None:
        self.variable = variable
        cleaned = text.strip().strip("\"'").strip()
        scheme, separator, rest = cleaned.partition("://")
        if not separator:
            scheme, rest = "http", cleaned
        self.scheme = scheme.lower()
        if self.scheme not in _PORTS:
            found = f"begins with {scheme}://" if _SCHEME.fullmatch(scheme) else "has an unknown scheme"
            raise OllamaError(f"{variable} {found}; expected http:// or https:// before the host")
        place, _, path = rest.partition("/")
        login, _, place = place.rpartition("@")
        if "@" in path:
            raise OllamaError(f"{variable} has a / before its @; write / in a user's name or a password as %2F")
        self.authorization = _basic(login) if login else None
        host, port = _split(place)
        self.hosts = _reachable(host, variable)
        # Ollama's own client takes its own port for HTTP:// in capitals too, as without a scheme.
        default = _PORTS.get(scheme) if separator else None
        # Like Ollama, use the default for an invalid port.
        valid = port.isascii() and port.isdecimal() and int(port) < 65536
        self.port = int(port) if valid else default or default_port or DEFAULT_PORT
        self.path = f"/{quote(path.strip('/'), _SAFE_IN_PATH)}" if path.strip("/") else ""

    @property
    def host(self) -> str:
        """The host that is tried first."""
        return self.hosts[0]

    @property
    def is_loopback(self) -> bool:
        """Whether the server runs on this machine, as its address shows."""
        if self.host.lower() == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ip_address(self.host).is_loopback
        return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def _split(place: str) -> tuple[str, str]:
    """Return host and port, "" if absent; IPv6 addresses are written [::1]:80, [::1] or ::1."""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host, port.removeprefix(":")
    if place.count(":") > 1:
        return place, ""
    host, _, port = place.partition(":")
    return host, port


def _reachable(host: str, variable: str) -> tuple[str, ...]:
    """Return the hosts to try: `host` itself, or those of this machine for what means all of its addresses."""
    with contextlib.suppress(ValueError):
        address = ip_address(host)
        if not address.is_unspecified:
            return (host,)
        # Not every system lets a client connect to 0.0.0.0 or ::. A server on :: listens on IPv4 too, and on nothing
        # else where IPv6 is switched off.
        return ("127.0.0.1",) if address.version == 4 else ("::1", "127.0.0.1")
    try:
        name = host.encode("idna").decode()
    except UnicodeError:
        name = "?"
    if not _HOST_NAME.fullmatch(name):
        raise OllamaError(f"{variable} has no valid host; expected host, host:port or http://host:port")
    return (name or "127.0.0.1",)


def _basic(login: str) -> str:
    """Return the header's value for "user:password", in which %2F stands for a slash and so on."""
    user, colon, password = login.partition(":")
    text = unquote(user) + (colon or ":") + unquote(password)
    return f"Basic {base64.b64encode(text.encode()).decode()}"


def proxy_for(address: Address) -> Address | None:
    """Return the proxy that HTTP_PROXY or HTTPS_PROXY, and NO_PROXY, name for an address; None without one.

    As with Ollama's own client, there is none for this machine, and NO_PROXY may name networks such as 10.0.0.0/8.
    Raises OllamaError if it is a kind of proxy that isn't supported.
    """
    proxies = getproxies_environment()
    text = proxies.get(address.scheme, "")
    if not text or address.is_loopback or _is_excepted(address, proxies.get("no", "")):
        return None
    variable = f"{address.scheme.upper()}_PROXY"
    scheme, separator, _ = text.strip().partition("://")
    if separator and scheme.lower() != "http":
        raise OllamaError(
            f"{variable} isn't an http:// proxy, and no other kind is supported; set it to one, or set "
            f"NO_PROXY={address.host}"
        )
    return Address(text, variable, default_port=80)


def _is_excepted(address: Address, no_proxy: str) -> bool:
    """Whether NO_PROXY names the address: by *, its host or a domain of it, both maybe with a port, or its network."""
    for item in no_proxy.lower().split(","):
        name = item.strip()
        with contextlib.suppress(ValueError):
            if ip_address(address.host) in ip_network(name, strict=False):
                return True
        host, port = _split(name)
        domain = host.lstrip("*.")
        ends = domain and f".{address.host.lower()}".endswith(f".{domain}")
        if name == "*" or (ends and port in ("", str(address.port))):
            return True
    return False

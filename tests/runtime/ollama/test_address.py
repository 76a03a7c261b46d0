"""The forms of OLLAMA_HOST, and which proxy the environment names for an address."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

import pytest

from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.address import Address, proxy_for
from tritgguf.runtime.ollama.api import Ollama


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", "http://127.0.0.1:11434"),
        ("localhost", "http://localhost:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:5678", "http://1.2.3.4:5678"),
        (":5678", "http://127.0.0.1:5678"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://example.org", "https://example.org:443"),
        ("https://example.org:8443/ollama/", "https://example.org:8443/ollama"),
        ("example.org/", "http://example.org:11434"),
        (" 'localhost:80' ", "http://localhost:80"),
        ('"localhost"', "http://localhost:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("[::]:8000", "http://[::1]:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("localhost:66000", "http://localhost:11434"),
        ("localhost:port", "http://localhost:11434"),
        ("https://localhost:", "https://localhost:443"),
        ("HTTP://localhost", "http://localhost:11434"),
        ("HTTPS://localhost:8000", "https://localhost:8000"),
        ("http://[::]:11434", "http://[::1]:11434"),
        ("[0:0:0:0:0:0:0:0]:8000", "http://[::1]:8000"),
        ("http://user:secret@[::1]:8000/x", "http://[::1]:8000/x"),
        ("user:secret@example.org", "http://example.org:11434"),
        ("http://example.org/ü b", "http://example.org:80/%C3%BC%20b"),
        ("http://bücher.example", "http://xn--bcher-kva.example:80"),
    ],
)
def test_the_forms_of_ollama_host(text: str, address: str) -> None:
    assert str(Address(text)) == address


def test_another_scheme_is_refused() -> None:
    with pytest.raises(OllamaError, match="OLLAMA_HOST begins with ftp://; expected http:// or https://"):
        Address("ftp://x")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ftp://user:secret@host", "begins with ftp://"),
        ("user:secret://host", "has an unknown scheme"),
        ("http://user:secret/word@host", "has a / before its @; write / in a user's name or a password as %2F"),
        ("http://user:secret@ho st", "has no valid host"),
        ("user:secret:word", "has no valid host"),
        ("http://secret..x", "has no valid host"),
        (f"http://{'secret' * 20}", "has no valid host"),
    ],
)
def test_what_is_no_address_is_refused_without_being_quoted(text: str, part: str) -> None:
    with pytest.raises(OllamaError) as refused:
        Address(text)
    assert str(refused.value).startswith(f"OLLAMA_HOST {part}")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("login", "pair"),
    [("me:pass", "me:pass"), ("me", "me:"), (":pass", ":pass"), ("m%40e:p%2Fa%3Ass@", "m@e:p/a:ss@"), ("é:ü", "é:ü")],
)
def test_user_and_password(login: str, pair: str) -> None:
    address = Address(f"http://{login}@example.org:80")
    assert str(address) == "http://example.org:80"
    assert address.authorization == f"Basic {base64.b64encode(pair.encode()).decode()}"
    assert Address("http://example.org").authorization is None


def test_ollama_host_is_read_when_a_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "example.org:1")
    assert str(Ollama().address) == "http://example.org:1"


# --- proxies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "variables", "proxy"),
    [
        ("http://example.org", {}, None),
        ("http://example.org", {"HTTP_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ("http://example.org", {"http_proxy": "proxy"}, "http://proxy:80"),
        ("http://example.org", {"HTTPS_PROXY": "http://proxy:3128"}, None),
        ("https://example.org", {"HTTPS_PROXY": "HTTP://me:secret@[::2]:3128/"}, "http://[::2]:3128"),
        ("https://example.org", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http://localhost", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http://127.0.0.9:80", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("", {"HTTP_PROXY": "http://proxy:3128"}, None),
        ("http://a.example.org", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "x.org, example.org"}, None),
        ("http://example.org:80", {"HTTP_PROXY": "http://proxy", "no_proxy": "example.org:80"}, None),
        ("http://example.org:81", {"HTTP_PROXY": "http://proxy", "no_proxy": "example.org:80"}, "http://proxy:80"),
        ("http://10.1.2.3", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, None),
        ("http://11.1.2.3", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "10.0.0.0/8"}, "http://proxy:80"),
        ("http://[fd00::5]", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "fd00::5"}, None),
        ("http://example.org", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*"}, None),
        ("http://A.Example.ORG", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "*.example.org"}, None),
        ("http://badexample.org", {"HTTP_PROXY": "http://proxy", "NO_PROXY": "example.org,,"}, "http://proxy:80"),
    ],
)
def test_which_proxy(host: str, variables: dict[str, str], proxy: str | None, environment) -> None:
    environment(variables)
    found = proxy_for(Address(host))
    assert (str(found) if found else None) == proxy


@pytest.mark.parametrize("scheme", ["https", "socks5", "SOCKS5h"])
def test_other_kinds_of_proxy_are_refused(scheme: str, environment) -> None:
    environment({"HTTP_PROXY": f"{scheme}://me:secret@proxy:1080"})
    with pytest.raises(OllamaError, match=r"HTTP_PROXY isn't an http:// proxy.*NO_PROXY=example\.org") as refused:
        Ollama(Address("example.org"))
    assert "secret" not in str(refused.value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Set these of the variables that name proxies, and unset all others."""

    def set_all(variables: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_all

"""What is around: Ollama, the hub, memory. Each answer takes a few seconds at most, and being offline is no error."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tritgguf.converter.errors import OllamaError
from tritgguf.runtime.ollama.api import Ollama
from tritgguf.runtime.ollama.connection import NotRunningError, Patience

SECONDS = 3.0
_ENDPOINT, _OFFLINE = "HF_ENDPOINT", "HF_HUB_OFFLINE"
_HUB = "https://huggingface.co"
_YES = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads its variables


@dataclass(frozen=True)
class Answer:
    """Whether something is there, and in words what was found."""

    found: bool
    line: str


class Asking:
    """A question in a thread of its own: looking a name up may take longer than any time limit of a connection."""

    def __init__(self, ask: Callable[[], Answer], late: str) -> None:
        self._answer = Answer(False, late)
        self._thread = threading.Thread(target=self._run, args=(ask,), daemon=True)
        self._thread.start()

    def _run(self, ask: Callable[[], Answer]) -> None:
        self._answer = ask()

    def answer(self) -> Answer:
        """Wait a little for the answer."""
        self._thread.join(2 * SECONDS)
        return self._answer


def ollama() -> Answer:
    """Return whether Ollama runs, and which version."""
    program = shutil.which("ollama")
    try:
        client = Ollama(patience=Patience(SECONDS, SECONDS))
        return Answer(True, f"{client.version()} at {client.address}")
    except NotRunningError:
        where = "the program is here, but no server runs: start `ollama serve`" if program else "no server, no program"
        return Answer(False, f"{where} ({client.address})")
    except OllamaError as error:
        return Answer(False, str(error))


def hub() -> Answer:
    """Return whether the hub of models answers; it isn't asked where HF_HUB_OFFLINE is set."""
    place = _without_password((os.environ.get(_ENDPOINT) or _HUB).rstrip("/"))  # it answers without one, too
    if os.environ.get(_OFFLINE, "").upper() in _YES:
        return Answer(False, f"not asked, since {_OFFLINE} is set")
    if not place.lower().startswith(("http://", "https://")):
        return Answer(False, f"{_ENDPOINT} isn't an address that begins with http:// or https://")
    try:
        request = urllib.request.Request(place, method="HEAD", headers={"User-Agent": "tritgguf"})
        with urllib.request.urlopen(request, timeout=SECONDS):
            return Answer(True, f"{place} answers")
    except urllib.error.HTTPError as error:  # a mirror may have no page there, but it answers
        with error:
            broken = error.code >= http.client.INTERNAL_SERVER_ERROR
            return Answer(not broken, f"{place} answers" + (f" with an error, {error.code}" if broken else ""))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Answer(False, f"{place} can't be reached ({_reason(error)}); models on this disk work")


def _without_password(address: str) -> str:
    """Return an address without a user's name and password."""
    before, _, after = address.rpartition("@")
    scheme, separator, _ = before.partition("://")
    return f"{scheme}{separator}{after}" if before else address


def _reason(error: Exception) -> str:
    """Return a short reason; the URL, which may hold a password, is in none of these."""
    cause = getattr(error, "reason", error)
    if isinstance(cause, TimeoutError):
        return f"no answer for {SECONDS:g} seconds"
    if isinstance(cause, socket.gaierror):
        return "its name isn't known: no network?"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return type(cause).__name__


def total_memory(machine_bytes: int) -> int | None:
    """Return the bytes of memory that this process may use: the machine's, or a container's limit if that is less."""
    limits = [machine_bytes] if machine_bytes else []
    with contextlib.suppress(OSError, ValueError):
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if not limits and hasattr(os, "sysconf"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)

"""How many connections the server has, and how long one may take to send a request: uvicorn sets no limit to either."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # Windows has neither the module nor the limit
    resource = None  # type: ignore[assignment]

# Beside those whose requests have a slot or wait for one: for health and metrics, clients that keep theirs, slow ones.
SPARE_CONNECTIONS = 100
OTHER_FILES = 64  # of the process: models, libraries, standard streams


class Connection(H11Protocol):
    """A connection that is closed when it has sent no whole request for `seconds`, or when another one needs its place.

    Where there are `limit` connections already, a new one takes the place of the one whose request isn't whole for the
    longest time: those of clients that send nothing, that send slowly, or that keep a connection for later. A request
    that has come is always answered.
    """

    limit: int
    seconds: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._await_request()
        if len(self.connections) > self.limit:
            self._take_a_place()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _take_a_place(self) -> None:
        there = [other for other in self.connections if isinstance(other, Connection)]
        there = [other for other in there if not other.transport.is_closing()]
        if len(there) > self.limit:
            waiting = (other for other in there if other.is_waiting)  # this one does
            min(waiting, key=lambda other: other.waits_since).transport.abort()

    @property
    def is_waiting(self) -> bool:
        """Whether a request, or the rest of one, is still to come."""
        return not self._is_answering or self.cycle.more_body

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def handle_events(self) -> None:
        super().handle_events()
        if self._is_answering:  # what is left of its body has a limit of its own (http.read_object)
            self._stop_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_answering:  # the next request may have come already
            self._await_request()

    def _await_request(self) -> None:
        self._stop_timer()
        self.waits_since = time.monotonic()
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connection_class(limit: int, seconds: float) -> type[Connection]:
    """Return the class of a server's connections."""
    limits: dict[str, Any] = {"limit": limit, "seconds": seconds}
    return type("LimitedConnection", (Connection,), limits)


def allowed_connections(wanted: int) -> int:
    """Return how many connections this process can have, up to `wanted`; raises its limit of open files to that."""
    if resource is None:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - OTHER_FILES)
    return wanted

"""Runs the server: binds the address, loads the models, serves until a signal, and frees everything."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import Scope

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.server.app import LastResort, application
from tritgguf.runtime.server.connections import (
    SPARE_CONNECTIONS,
    Connection,
    allowed_connections,
    connection_class,
)
from tritgguf.runtime.server.decode_thread import DecodeThread
from tritgguf.runtime.server.http import Limits
from tritgguf.runtime.server.models import Capacity, Models, open_models
from tritgguf.runtime.server.service import Service
from tritgguf.runtime.server.state import State

# After a signal, answers end with an error at once; this is for clients that don't take it.
GRACE_SECONDS = 3
KEEP_SECONDS = 30  # that a connection is kept for another request


@dataclass(frozen=True)
class Options:
    """How to serve: `max_waiting` requests for each model beside those in slots, `seconds` for each request.

    `host` is the name of the address that the server is bound to, as it was asked for.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    max_waiting: int = 256
    seconds: float = 600.0
    context_shift: bool = False
    limits: Limits = field(default_factory=Limits)


def serve(
    listener: socket.socket,
    files: Sequence[tuple[str, Path]],
    capacity: Capacity,
    options: Options,
    *,
    listening: Callable[[str, Models], None],
) -> None:
    """Serve files, given with their names, until SIGINT or SIGTERM, which is raised again after the cleanup.

    `listener` is a socket of bind(). `listening` is called with its address when requests are taken. EngineError if a
    file can't be loaded.
    """
    with open_models(files, capacity) as models:
        thread = DecodeThread([served.batcher for served in models.all], max_waiting=options.max_waiting)
        service = Service(models, thread, seconds=options.seconds, shifts=options.context_shift)
        state = State(service, options.limits)
        app = LastResort(application(state, api_key=options.api_key, host=options.host))
        n_requests = sum(served.n_slots + options.max_waiting for served in models.all)
        connection = connection_class(allowed_connections(n_requests + SPARE_CONNECTIONS), options.limits.idle_seconds)
        server = _Server(app, thread, connection, lambda: listening(address_of(listener), models))
        state.abort = server.abort
        thread.start()
        try:
            server.run(sockets=[listener])
        finally:
            thread.stop()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; EngineError if that can't be done.

    Who connects before serve() runs is answered when it does.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EngineError(f"{host}:{port} can't be listened on ({reason}); choose another --host or --port") from error


def address_of(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    return f"http://{shown}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server, which ends all answers when a signal comes instead of waiting for them."""

    def __init__(
        self, app: LastResort, thread: DecodeThread, connection: type[Connection], listening: Callable[[], None]
    ) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        super().__init__(
            uvicorn.Config(
                app,
                http=connection,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=KEEP_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._thread = thread
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._thread.ask_to_stop()
        super().handle_exit(sig, frame)

    def abort(self, scope: Scope) -> None:
        """Cut the connection of a request."""
        for protocol in list(self.server_state.connections):
            transport = getattr(protocol, "transport", None)
            if transport is not None and getattr(protocol, "client", None) == scope.get("client"):
                transport.abort()

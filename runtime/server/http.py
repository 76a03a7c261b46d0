"""What both APIs need of HTTP: bodies with limits, answers that end when the client is gone, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tritgguf.runtime.server.errors import RequestError, shutting_down
from tritgguf.runtime.server.fields import Fields, parse_object

T = TypeVar("T")
# Without a key, anyone on this machine may ask; these paths tell nothing of the models' answers, and need none either.
OPEN_PATHS = ("/", "/health")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """`body_bytes` of a request; seconds for a request to come, for its body, and for a client to take what it gets."""

    body_bytes: int = 4 << 20
    idle_seconds: float = 60.0
    body_seconds: float = 30.0
    send_seconds: float = 60.0


async def read_object(request: Request, limits: Limits) -> Fields:
    """Return the body's JSON object; RequestError if it is too large, too slow or no JSON object."""
    too_large = RequestError(
        f"the body has more than {limits.body_bytes} bytes, this server's limit", status=413, code="body_too_large"
    )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.body_bytes:
        raise too_large

    async def read() -> bytes:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > limits.body_bytes:
                raise too_large
        return bytes(data)

    try:
        return parse_object(await asyncio.wait_for(read(), limits.body_seconds))
    except asyncio.TimeoutError:
        raise RequestError("the body didn't arrive in time", status=408) from None


async def unless_disconnected(request: Request, work: Coroutine[object, object, T]) -> T:
    """Return what `work` returns; ClientDisconnect, and `work` is cancelled, if the client hangs up before."""

    async def disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(disconnect())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for running in (task, watch):
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await running


class Stream(Response):
    """A response whose parts are sent as they come; `close` is called when it ends, however that is.

    `abort` cuts the client's connection: one that takes nothing would keep it for ever.
    """

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        *,
        media_type: str,
        limits: Limits,
        close: Callable[[], None],
        abort: Callable[[Scope], None],
    ) -> None:
        super().__init__(media_type=media_type, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._parts = parts
        self._limits = limits
        self._close = close
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect):
                await unless_disconnected(Request(scope, receive), self._send_all(scope, send))
        finally:
            self._close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        loop = asyncio.get_running_loop()

        async def deliver(message: Message) -> None:
            # Not asyncio.wait_for: before Python 3.12 it can swallow the cancellation of a client that has hung up.
            late = loop.call_later(self._limits.send_seconds, self._abort, scope)
            try:
                await send(message)
            finally:
                late.cancel()

        await deliver({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            await deliver({"type": "http.response.body", "body": part, "more_body": True})
        await deliver({"type": "http.response.body", "body": b""})


class Guard:
    """Lets a request through if it has the key, where there is one, and isn't some website's in the user's browser.

    A page of any site can send requests to this machine: its Origin gives it away. And a site can have its own name
    resolve to 127.0.0.1: so a server that is bound to this machine answers under this machine's names only.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        host: str,
        is_stopping: Callable[[], bool],
        refuse: Callable[..., Response],
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._local_only = host in _LOCAL_NAMES
        self._is_stopping = is_stopping
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._problem(scope)):
            await self._refuse(scope["path"], error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> RequestError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local_only and _name(f"//{host}") not in _LOCAL_NAMES:
            return RequestError(
                f"the host {host!r} isn't this server; start it with --host to serve others", status=403
            )
        if origin is not None and _place(origin) != host:
            return RequestError(f"pages of {origin} may not use this server", status=403)
        if self._is_stopping():
            return shutting_down()
        if self._api_key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip() or headers.get("x-api-key", "")
            if not hmac.compare_digest(given.encode(), self._api_key.encode()):
                return RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
        return None


def _place(url: str) -> str | None:
    try:
        return urlsplit(url).netloc
    except ValueError:
        return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None

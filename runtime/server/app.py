"""The web application: which path is answered by what, and errors in the shape of the API that was asked."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.server import ollama_api, openai_api
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.http import Guard
from tritgguf.runtime.server.metrics import metrics
from tritgguf.runtime.server.state import State

_NOT_HERE = ("pull", "push", "create", "copy", "delete", "blobs/{digest}")  # of Ollama's API
# The page's own script and style are in it; nothing else is loaded, and it talks to this server only.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def application(state: State, *, api_key: str | None, host: str) -> Starlette:
    """Return the application; `host` is the address that it is bound to."""
    guard = Middleware(
        Guard, api_key=api_key, host=host, is_stopping=lambda: state.service.thread.is_stopping, refuse=error_response
    )
    handlers: dict[Any, Callable[..., Any]] = {
        TritggufError: _tritgguf_error,
        ClientDisconnect: _gone,
        HTTPException: _http_error,
    }
    return Starlette(routes=_routes(state), middleware=[guard], exception_handlers=handlers)


def _routes(state: State) -> list[Route]:
    openai, ollama = openai_api.OpenAI(state), ollama_api.Ollama(state)

    async def page(_: Request) -> Response:
        text = resources.files("tritgguf.runtime.server").joinpath("page.html").read_text("utf-8")
        return HTMLResponse(text, headers={"content-security-policy": _PAGE_POLICY, "referrer-policy": "no-referrer"})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def prometheus(_: Request) -> Response:
        return PlainTextResponse(metrics(state.models), media_type="text/plain; version=0.0.4; charset=utf-8")

    get, post = ["GET"], ["POST"]
    return [
        Route("/", page, methods=get),
        Route("/health", health, methods=get),
        Route("/metrics", prometheus, methods=get),
        Route("/v1/models", openai.models, methods=get),
        Route("/v1/models/{name:path}", openai.model, methods=get),
        Route("/v1/chat/completions", openai.chat_completions, methods=post),
        Route("/v1/completions", openai.completions, methods=post),
        Route("/v1/embeddings", openai.embeddings, methods=post),
        Route("/api/version", ollama.version, methods=get),
        Route("/api/tags", ollama.tags, methods=get),
        Route("/api/ps", ollama.ps, methods=get),
        Route("/api/show", ollama.show, methods=post),
        Route("/api/chat", ollama.chat, methods=post),
        Route("/api/generate", ollama.generate, methods=post),
        Route("/api/embed", ollama.embed, methods=post),
        Route("/api/embeddings", ollama.embeddings, methods=post),
        *(Route(f"/api/{path}", ollama.refused, methods=["GET", "POST", "DELETE", "HEAD"]) for path in _NOT_HERE),
    ]


def error_response(path: str, error: RequestError) -> Response:
    """Return the error in the shape of the API that the path belongs to."""
    shape = ollama_api.error_body if path.startswith("/api/") else openai_api.error_body
    headers = {"retry-after": "1"} if error.status == 503 else {}
    return JSONResponse(shape(error), error.status, headers=headers)


async def _tritgguf_error(request: Request, error: Exception) -> Response:
    known = error if isinstance(error, RequestError) else RequestError(str(error))
    return error_response(request.url.path, known)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_response(request.url.path, RequestError(message, status=error.status_code))


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


class LastResort:
    """Answers what is a bug with status 500 and without its traceback, which TRITGGUF_DEBUG shows to who runs this."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if os.environ.get("TRITGGUF_DEBUG"):
                traceback.print_exc(file=sys.stderr)
            else:
                print(f"error: {scope.get('path')}: internal error ({type(error).__name__})", file=sys.stderr)
            if not begun and scope["type"] == "http":
                refusal = RequestError(f"internal error ({type(error).__name__})", status=500)
                await error_response(scope["path"], refusal)(scope, receive, send)

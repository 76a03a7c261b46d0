"""What a request is refused with: an HTTP status, and OpenAI's names for the kind of error."""

from __future__ import annotations

from tritgguf.converter.errors import TritggufError


class RequestError(TritggufError):
    """A request can't be answered; `status` is HTTP's, `param` the field of the request that is the cause.

    `code` is OpenAI's where it has one for the case, such as context_length_exceeded.
    """

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code

    @property
    def kind(self) -> str:
        """OpenAI's `type` of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


def shutting_down() -> RequestError:
    return RequestError("the server is shutting down", status=503, code="shutting_down")


def too_late() -> RequestError:
    return RequestError("the request took longer than this server allows", status=504, code="timeout")

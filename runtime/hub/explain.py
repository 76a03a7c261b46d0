"""What went wrong on the way to the hub, in one line that says what to do; no line ever has a token in it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.client import site
from tritgguf.runtime.hub.names import ENDPOINT_VARIABLE, RepositoryName

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

OFFLINE_VARIABLE = "HF_HUB_OFFLINE"
TOKEN_VARIABLE = "HF_TOKEN"
_LOG_IN = f"set {TOKEN_VARIABLE}, or run `hf auth login`"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def explained(name: RepositoryName) -> Iterator[None]:
    """Turn what huggingface_hub, its connections and the disk raise into HubError."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, HTTPError, InvalidURL, HFValidationError, UnicodeEncodeError) as error:
        raise HubError(_line(name, error)) from error


def _line(name: RepositoryName, error: BaseException) -> str:
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        FileMetadataError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return _line(name, error.__cause__)
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{name} isn't complete in {constants.HF_HUB_CACHE}, and {OFFLINE_VARIABLE} forbids to fetch it: unset "
            f"{OFFLINE_VARIABLE}, or fetch it where there is a network"
        )
    if isinstance(error, HfHubHTTPError):
        return _answered(name, error)
    if isinstance(error, (HTTPError, InvalidURL)):
        what = str(error).strip() or type(error).__name__
        return (
            f"{name} isn't here, and {site()} can't be reached ({what:.200}): check the path, or the "
            f"network, HTTPS_PROXY and {ENDPOINT_VARIABLE}"
        )
    if isinstance(error, FileMetadataError):
        return f"{name}: {site()} doesn't answer as a hub does; check {ENDPOINT_VARIABLE}"
    if isinstance(error, UnicodeEncodeError):  # of a header: addresses are escaped before
        return f"your token has characters that can't be sent: {_token_remedy()}"
    if isinstance(error, HFValidationError):
        return f"{name} is no name of a {name.kind}: {error}"
    assert isinstance(error, OSError)
    return _on_disk(name, error, constants.HF_HUB_CACHE)


def no_answer(error: Exception) -> bool:
    """Whether an error means that the hub gave no answer, so that what is in the cache will do."""
    from httpx2 import TransportError
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, (OfflineModeIsEnabled, TransportError))


def _on_disk(name: RepositoryName, error: OSError, cache: str) -> str:
    if error.errno in _NO_SPACE:
        return (
            f"{name}: no space left on the disk of {cache}: free some and run the command again, which goes on where "
            "it stopped, or set HF_HOME to a folder on another disk"
        )
    what = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
    return f"{name}: {cache} can't be used: {what:.300}; set HF_HOME to a folder that can be written"


def _answered(name: RepositoryName, error: HfHubHTTPError) -> str:
    """Explain an answer of the hub with a status of 400 or more."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page, status = f"{site()}/{name.path}", error.response.status_code
    if isinstance(error, GatedRepoError):
        if _has_token():
            return f"{name.path} is gated, and your account has no access: ask for it at {page}, then try again"
        return f"{name.path} is gated: accept its conditions at {page}, then {_LOG_IN}"
    if isinstance(error, DisabledRepoError):
        return f"{name.path} was disabled by the hub ({page} may say why): choose another repository"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{name.path} has no revision {name.revision}: give a branch, a tag or a commit, such as at {page}/commits"
        )
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{name}: a file that the hub listed isn't there any more ({page}): try again"
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"{site()} refuses your token: {_token_remedy()}"
    if status in (401, 404):
        also = "your token may not read it" if _has_token() else f"it is private: then {_LOG_IN}"
        return f"{site()} has no {name.kind} {name.path}, and there is no such path here: check the spelling, or {also}"
    if status == 403:
        return f"{name.path}: your token may not read it (403): see {site()}/settings/tokens"
    if status == 429:
        return f"{site()} asks to wait (429, too many requests): try again in some minutes{_hint()}"
    if status >= 500:
        return f"{site()} has trouble (status {status}): try again later"
    return f"{name}: {site()} answered with status {status}; check {ENDPOINT_VARIABLE} and the name"


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def _token_remedy() -> str:
    from huggingface_hub import constants

    if os.environ.get(TOKEN_VARIABLE):
        return f"{TOKEN_VARIABLE} is wrong or has expired; unset it for public models, or set a new one"
    return f"the one in {constants.HF_TOKEN_PATH} is wrong or has expired; `hf auth login` takes a new one"


def _hint() -> str:
    return "" if _has_token() else f"; who is logged in may ask more often ({_LOG_IN})"

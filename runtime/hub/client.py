"""huggingface_hub, set up for one line per error: imported when a name is used, never to print a help.

It reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE when it is first imported.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from functools import cache
from typing import TYPE_CHECKING

import tritgguf
from tritgguf.converter.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_DEBUG_VARIABLE = "TRITGGUF_DEBUG"
# Unless the user says otherwise: the hub isn't told which other packages and programs there are.
_SETTINGS = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_SYMLINKS_WARNING": "1"}


@cache
def hub() -> HfApi:
    """Return the client of the hub that HF_ENDPOINT names; raise HubError where a setting is none."""
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        importlib.import_module("huggingface_hub.constants")  # its settings; below, a failure would be printed too
    except ValueError as error:  # whose text may have HF_ENDPOINT's password
        raise HubError(
            "huggingface_hub doesn't take a setting: check HF_ENDPOINT, which is an address such as "
            "https://huggingface.co, and other variables that begin with HF_"
        ) from error
    from huggingface_hub import HfApi

    if not os.environ.get(_DEBUG_VARIABLE):
        logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # what it warns of is raised too, if it matters
    return HfApi(library_name="tritgguf", library_version=tritgguf.__version__)


def site() -> str:
    """Return the hub's address for messages: without a user's name and password."""
    return re.sub(r"//[^/]*@", "//", hub().endpoint)

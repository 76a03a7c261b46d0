"""What every command that runs a model does before it loads the native library's first model."""

from __future__ import annotations

import os


def prepare_native_library() -> None:
    """Let a failed assertion in llama.cpp end in one line; with --debug, show its log."""
    from tritgguf.runtime.engine import backend  # not at the top: the help doesn't need the native library

    backend.exit_on_native_abort()
    if os.environ.get("TRITGGUF_DEBUG"):
        backend.show_native_log()

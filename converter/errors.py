"""Every error that tritgguf raises on purpose.

    TritggufError                 base: the command line prints it in one line and exits with 1
    ├── SourceError               the model folder or one of its files can't be read as it claims to be
    ├── UnsupportedError          the model is understood, but no exact conversion of it exists here
    ├── TensorError               a tensor's values or shape don't fit what was asked for
    ├── TokenizerError            the tokenizer can't be carried over so that token ids stay the same
    ├── OutputError               the target file can't be written
    ├── EngineError               the native runtime can't load or run a file
    ├── PluginError               a plugin can't be loaded, or isn't what its place requires
    ├── OllamaError               Ollama's server can't be reached, or refuses what it is asked for
    ├── HubError                  the hub can't be reached, or it refuses or lacks what a name asks for
    └── CacheError                a model isn't in the cache, or the cache can't be used

A message names the file or tensor, what was found, what was expected, and the remedy.
"""

from __future__ import annotations

MAX_MESSAGE = 2000


class TritggufError(Exception):
    """Base of all errors below; `str(error)` is one line meant for the user.

    Messages quote what files hold: line ends in them become spaces, and a message of more than 2,000 characters loses
    its middle, since it begins with the place and ends with the remedy.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        half = MAX_MESSAGE // 2 - 1
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:half]}…{line[-half:]}")


class SourceError(TritggufError):
    """The model folder or a file in it is missing, damaged or inconsistent."""


class UnsupportedError(TritggufError):
    """The model asks for something that no tensor type or graph here represents."""


class TensorError(TritggufError):
    """A tensor's values or shape don't fit the request."""


class TokenizerError(TritggufError):
    """The tokenizer can't be written so that the runtime gives the same token ids."""


class OutputError(TritggufError):
    """The target can't be written."""


class EngineError(TritggufError):
    """The native runtime can't load or run the file."""


class PluginError(TritggufError):
    """A plugin can't be loaded, or isn't what its place requires."""


class OllamaError(TritggufError):
    """Ollama's server can't be reached, or refuses what it is asked for."""


class HubError(TritggufError):
    """The hub can't be reached, or it refuses or lacks what a name asks for."""


class CacheError(TritggufError):
    """A model isn't in the cache of models, or the cache can't be read or written."""

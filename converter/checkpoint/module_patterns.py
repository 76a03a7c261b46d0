"""Names of modules in config.json, and regular expressions for them: these come from strangers and are judged first."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tritgguf.converter.checkpoint.config_json import FILE
from tritgguf.converter.core.patterns import n_repetitions, require_quick
from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import SourceError

MAX_PATTERNS = 1000  # in one list
MAX_STEPS = 10_000_000  # of one list on one module, so that matching takes no longer than the file is large
MARK = "re:"  # before a regular expression in compressed-tensors' lists


class ModuleNames:
    """A list of modules as compressed-tensors writes it: full names, class names, and regular expressions after `re:`.

    A regular expression must match the start of a module's name (compressed_tensors/utils/match.py, `match_name`).
    Raises SourceError for one that is invalid or may take for ever.
    """

    def __init__(self, entries: Iterable[str], key: str) -> None:
        entries = list(entries)
        self.names = frozenset(entry for entry in entries if not entry.startswith(MARK))
        patterns = [entry.removeprefix(MARK) for entry in entries if entry.startswith(MARK)]
        require_quick(f"{FILE}: {key}", patterns)
        if len(patterns) > MAX_PATTERNS:
            raise SourceError(f"{FILE}: {key} holds {len(patterns)} patterns; expected at most {MAX_PATTERNS}")
        self.key = key
        self.repetitions = [n_repetitions(pattern) for pattern in patterns]
        try:
            self.patterns = [re.compile(pattern) for pattern in patterns]
        except (re.error, OverflowError) as error:
            raise SourceError(f"{FILE}: {key} holds an invalid pattern: {shown(str(error))}") from error

    def match(self, module: str) -> bool:
        """Whether the list has the module's name, or a regular expression for it.

        Raises SourceError where matching may take for ever, since the name is too long for the patterns.
        """
        if module in self.names:
            return True
        if sum(len(module) ** times for times in self.repetitions) > MAX_STEPS:
            raise SourceError(
                f"{FILE}: {self.key} holds {len(self.patterns)} patterns, which can take for ever to match the name "
                f"{shown(module)}; expected fewer, or with fewer repetitions"
            )
        return any(pattern.match(module) for pattern in self.patterns)

"""The Python files that a checkpoint brings: those that its auto_map names, and those that these import.

As transformers finds them (`get_class_from_dynamic_module`, `get_relative_imports` in dynamic_module_utils.py): a file
beside config.json per module. They are copied, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tritgguf.converter.core.json_files import read_object_if_present
from tritgguf.converter.errors import SourceError

PATTERNS = ("configuration_*.py", "modeling_*.py", "tokenization_*.py")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_IMPORT = re.compile(r"^\s*(?:import\s+\.(\w+)|from\s+\.(\w+)\s+import)", re.MULTILINE)


def code_files(folder: Path) -> set[str]:
    """Return the names of the files; raise SourceError if a JSON file that may name some is damaged."""
    found = {path.name for pattern in PATTERNS for path in folder.glob(pattern)}
    waiting = [*found, *_in_auto_maps(folder)]
    while waiting:
        path = folder / waiting.pop()
        if path.is_file():
            found.add(path.name)
            imported = (
                f"{first or second}.py" for first, second in _IMPORT.findall(path.read_text("utf-8", "replace"))
            )
            waiting += [name for name in imported if name not in found]
    return {name for name in found if (folder / name).is_file()}


def _in_auto_maps(folder: Path) -> Iterator[str]:
    for config in CONFIGS:
        auto_map = read_object_if_present(folder / config, SourceError).get("auto_map")
        classes = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        for value in classes:  # "module.Class", or for tokenizers a slow and a fast class, one of which may be null
            for name in value if isinstance(value, list) else [value]:
                if isinstance(name, str) and (
                    module := re.fullmatch(r"(\w+)\.\w+", name)
                ):  # "repository--…" isn't here
                    yield f"{module[1]}.py"

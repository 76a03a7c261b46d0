"""The texts in the sources: every string and f-string, with "…" where a value goes that only the run knows."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.paths import ROOT


@cache
def sources() -> dict[Path, ast.Module]:
    """Return the modules of both packages by their files."""
    files = [path for folder in ("converter", "runtime") for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}


@cache
def messages() -> list[str]:
    """Return the texts of both packages; names of constants in them are replaced by what they stand for."""
    return [text for tree in sources().values() for text in _texts(tree, known_constants(tree))]


def known_constants(tree: ast.Module) -> dict[str, str]:
    """Return the string constants that a module has or imports by their names."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    names = {alias.name for node in imports for alias in node.names} & set(_everywhere())
    return {**{name: _everywhere()[name] for name in names}, **_constants(tree)}


@cache
def _everywhere() -> dict[str, str]:
    return {name: text for tree in sources().values() for name, text in _constants(tree).items()}


def _constants(tree: ast.Module) -> dict[str, str]:
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def _texts(tree: ast.Module, known: dict[str, str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(_part(part, known) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _part(part: ast.expr, known: dict[str, str]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    value = part.value if isinstance(part, ast.FormattedValue) else None
    return known.get(value.id, "…") if isinstance(value, ast.Name) else "…"

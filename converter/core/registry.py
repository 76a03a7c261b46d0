"""Find the objects that the modules of a folder offer, so that a new architecture, codec or method is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def names(package: str) -> list[str]:
    """Return the names of the modules in `package`, without loading them."""
    folder = importlib.import_module(package)
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


@cache
def offered(package: str, attribute: str, kind: type[T]) -> tuple[T, ...]:
    """Return `attribute` of every module in `package`, ordered by module name; each must be a `kind`."""
    modules = names(package)
    found = [getattr(importlib.import_module(f"{package}.{name}"), attribute, None) for name in modules]
    for name, item in zip(modules, found, strict=True):
        if not isinstance(item, kind):
            raise TypeError(f"{package}.{name} must define {attribute}, a {kind.__name__}")
    return tuple(item for item in found if isinstance(item, kind))

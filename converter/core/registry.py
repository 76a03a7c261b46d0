"""The plugin registry: a new architecture, packing, codec, method, scheme or command is one new file.

A plugin is a module that defines one object under an agreed name, such as `CODEC`. It lies in the package's own folder,
or in another installed distribution that names it in an entry point
(https://packaging.python.org/en/latest/specifications/entry-points/). The group is `tritgguf.` and the last part of the
package's name: tritgguf.codecs, tritgguf.methods, tritgguf.packings, tritgguf.schemes, tritgguf.architectures,
tritgguf.commands, tritgguf.foreign_types. In the pyproject.toml of such a distribution:

    [project.entry-points."tritgguf.codecs"]
    my_type = "my_package.my_type"
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from tritgguf.converter.errors import PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Named(Protocol):
    """A plugin that is looked up by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T")
N = TypeVar("N", bound=Named)
PREFIX = "tritgguf."
GROUPS = {"arch": "architectures", "foreign": "foreign_types"}  # where the folder's name is an abbreviation


def names(package: str) -> list[str]:
    """Return the names of the plugins of `package` without loading them."""
    return sorted([*_modules(package), *(point.name for point in _entry_points(package))])


@cache
def offered(package: str, attribute: str, kind: type[T]) -> tuple[T, ...]:
    """Return `attribute` of every plugin of `package`, ordered by the plugins' names.

    Raise PluginError where one can't be loaded or doesn't define `attribute` as a `kind`.
    """
    found = [
        (name, f"{package}.{name}", getattr(importlib.import_module(f"{package}.{name}"), attribute, None))
        for name in _modules(package)
    ]
    found += [(point.name, _described(point), _loaded(point, attribute)) for point in _entry_points(package)]
    items = []
    for _, place, item in sorted(found, key=lambda plugin: plugin[:2]):
        if not isinstance(item, kind):
            raise PluginError(f"{place} must define {attribute}, a {kind.__name__}")
        items.append(item)
    return tuple(items)


def by_name(package: str, attribute: str, kind: type[N]) -> dict[str, N]:
    """Return the same by `name`; raise PluginError also where two plugins have one name."""
    items: dict[str, N] = {}
    for item in offered(package, attribute, kind):
        if item.name in items:
            raise PluginError(f"two plugins of {package} are called {item.name}: uninstall or rename one of them")
        items[item.name] = item
    return items


def _modules(package: str) -> list[str]:
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__)]


def _entry_points(package: str) -> Sequence[EntryPoint]:
    folder = package.rpartition(".")[2]
    group = PREFIX + GROUPS.get(folder, folder)
    if group not in _declared_groups(tuple(sys.path)):
        return ()
    from importlib import metadata  # not at the top: loading it takes a tenth of what printing the help takes

    return tuple(metadata.entry_points(group=group))


@cache
def _declared_groups(path: tuple[str, ...]) -> frozenset[str]:
    """Return our groups that distributions on the path declare: 1 ms, where importlib.metadata takes 30."""
    files = [file for folder in path for file in Path(folder).glob("*-info/entry_points.txt")]
    return frozenset(group for file in files for group in _groups_of(file))


def _groups_of(file: Path) -> list[str]:
    with contextlib.suppress(OSError):  # importlib.metadata passes over a file that can't be read, too
        lines = file.read_text("utf-8", errors="replace").splitlines()
        return [line.strip()[1:-1] for line in lines if line.strip().startswith(f"[{PREFIX}")]
    return []


def _loaded(point: EntryPoint, attribute: str) -> object:
    """Return the plugin's object; the entry point names the module that defines it, or the object itself."""
    try:
        loaded: object = point.load()
    except Exception as error:  # whatever another's code raises when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(f"{_described(point)} can't be loaded ({reason}): update or uninstall it") from error
    return getattr(loaded, attribute, loaded)


def _described(point: EntryPoint) -> str:
    owner = f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown distribution"
    return f"the plugin {point.name} = {point.value} ({point.group}, of {owner})"

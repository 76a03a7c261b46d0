"""`--override-kv KEY=TYPE:VALUE`: keys of the file that the user sets, with the types that llama.cpp's option has."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from gguf import GGUFValueType, Keys

from tritgguf.converter.errors import UnsupportedError
from tritgguf.converter.gguf_io.metadata import NUMBER_DTYPES, Metadata, Scalar, Value
from tritgguf.converter.model.architecture import architectures

# What programs read the rest of the file by, and what names the graph.
LAYOUT = frozenset(
    {Keys.General.ALIGNMENT, Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION, Keys.General.ARCHITECTURE}
)
LAYOUT_PREFIX = "split."
TOKENIZER, TEMPLATE = "tokenizer.", "tokenizer.chat_template"
KEY = re.compile(r"[!-~]{1,200}")  # printable ASCII
INTEGERS = tuple(kind for kind, dtype in NUMBER_DTYPES.items() if dtype[1:2] in ("u", "i"))
FLOATS = (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64)
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Override:
    """One key and its value; `kind` is what the option calls its type, `stored_as` the GGUF types that it may have.

    A key that the file has keeps its type; a new one gets the first of `stored_as` that holds the value. `option` is
    what the user wrote.
    """

    key: str
    kind: str
    value: Scalar
    stored_as: tuple[GGUFValueType, ...]
    option: str

    def applied(self, present: Value | None) -> Value:
        """Return the value to write; raise UnsupportedError where the file's own value `present` has another type."""
        if present is None:
            return self._as(self.stored_as)
        if present.type is GGUFValueType.ARRAY:
            raise UnsupportedError(f"{self.option}: {self.key} is an array, which can't be overridden")
        if present.type not in self.stored_as:
            raise UnsupportedError(
                f"{self.option}: {self.key} is {present.data!r:.80}, of type {_kind_of(present.type)}; expected "
                f"{self.key}={_kind_of(present.type)}:VALUE"
            )
        return self._as((present.type,))

    def _as(self, types: Sequence[GGUFValueType]) -> Value:
        fitting = next((kind for kind in types if _holds(kind, self.value)), None)
        if fitting is None:
            raise UnsupportedError(
                f"{self.option}: {self.value} doesn't fit the key's type, {types[0].name.lower()}: give a value in its "
                "range"
            )
        return Value(self.value, fitting)


def parse_override(text: str) -> Override:
    """Read KEY=TYPE:VALUE; raise UnsupportedError where it isn't that, or the key can't be overridden."""
    key, equals, typed = text.partition("=")
    kind, colon, written = typed.partition(":")
    option = f"--override-kv {text:.200}"
    if not equals or not colon or kind not in _KINDS:
        raise UnsupportedError(
            f"{option}: expected KEY=TYPE:VALUE with the type {', '.join(_KINDS)}, such as "
            "tokenizer.ggml.add_bos_token=bool:false"
        )
    if not KEY.fullmatch(key):
        raise UnsupportedError(f"{option}: a key has 1 to 200 printable ASCII characters without spaces")
    if key in LAYOUT or key.startswith(LAYOUT_PREFIX):
        raise UnsupportedError(
            f"{option}: {key} describes the file itself: another value would make it unreadable or wrong; leave it out"
        )
    read, stored_as, expected = _KINDS[kind]
    value = read(written)
    if value is None:
        raise UnsupportedError(f"{option}: {written!r:.80} is no {kind}; expected {expected}")
    return Override(key, kind, value, stored_as, option)


def named(name: str) -> Override:
    """Return the override of general.name; raise UnsupportedError where the text is empty or isn't valid Unicode."""
    if not name.strip() or _text(name) is None:
        raise UnsupportedError(f"--name {name!r:.80} is no name; expected a text")
    return Override(Keys.General.NAME, "str", name, (GGUFValueType.STRING,), f"--name {name:.200}")


def require_once(overrides: Sequence[Override]) -> None:
    """Raise UnsupportedError if two options set the same key."""
    seen: dict[str, Override] = {}
    for override in overrides:
        if override.key in seen:
            raise UnsupportedError(f"{seen[override.key].option} and {override.option} set the same key; give one")
        seen[override.key] = override


def overridden(metadata: Metadata, overrides: Sequence[Override]) -> Metadata:
    """Return the keys with the overrides; raise UnsupportedError where a key has another type or is an array.

    A file that has its hyperparameters under two names gets each under both.
    """
    both = (*overrides, *_under_the_other_name(metadata, overrides))
    require_once(both)
    return metadata | {override.key: override.applied(metadata.get(override.key)) for override in both}


def _under_the_other_name(metadata: Metadata, overrides: Sequence[Override]) -> list[Override]:
    name = metadata[Keys.General.ARCHITECTURE].data if Keys.General.ARCHITECTURE in metadata else None
    found = next((known for known in architectures() if known.own_name and known.own_name == name), None)
    if found is None:
        return []
    others = {f"{found.name}.": f"{found.graph_name}.", f"{found.graph_name}.": f"{found.name}."}
    return [
        replace(override, key=other + override.key.removeprefix(prefix))
        for override in overrides
        for prefix, other in others.items()
        if override.key.startswith(prefix)
    ]


def changes_tokenizer(overrides: Sequence[Override]) -> bool:
    """Whether token ids may differ from the source's on purpose."""
    return any(o.key.startswith(TOKENIZER) and not o.key.startswith(TEMPLATE) for o in overrides)


def notes(metadata: Metadata, overrides: Sequence[Override]) -> list[str]:
    """Return what was overridden, for the user; `metadata` is what the file would have without it."""
    found = []
    for override in overrides:
        before = metadata.get(override.key)
        was = "a new key" if before is None else f"instead of {before.data!r:.80}"
        found.append(f"{override.key} is {override.value!r:.80}, {was}: {override.option.split()[0]}")
    if changes_tokenizer(overrides):
        found.append("token ids aren't compared with the source tokenizer's, since --override-kv changes the tokenizer")
    return found


def _holds(kind: GGUFValueType, value: Scalar) -> bool:
    if kind in INTEGERS:
        limits = np.iinfo(NUMBER_DTYPES[kind])
        return int(limits.min) <= int(value) <= int(limits.max)
    return kind is not GGUFValueType.FLOAT32 or abs(float(value)) <= LARGEST_FLOAT32


def _kind_of(stored: GGUFValueType) -> str:
    return next(kind for kind, (_, types, _) in _KINDS.items() if stored in types)


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else None


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _bool(text: str) -> bool | None:
    return {"true": True, "false": False}.get(text)


def _text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


_NEW_INTEGERS = (GGUFValueType.UINT32, GGUFValueType.INT32, GGUFValueType.UINT64, GGUFValueType.INT64)
_KINDS: dict[str, tuple[Callable[[str], Scalar | None], tuple[GGUFValueType, ...], str]] = {
    "int": (_integer, tuple(dict.fromkeys((*_NEW_INTEGERS, *INTEGERS))), "a whole number"),
    "float": (_float, FLOATS, "a finite number"),
    "bool": (_bool, (GGUFValueType.BOOL,), "true or false"),
    "str": (_text, (GGUFValueType.STRING,), "valid Unicode"),
}

"""How the fuzzer damages files: bytes without knowing what they mean, and JSON documents value by value."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

_SIZES = (0, 1, 2, 3, 4, 8, 12, 255, 256, 65535, *(2**bits - 1 for bits in (31, 32, 48, 63, 64)), 2**31, 2**32, 2**63)
_TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[2J",
    "a\nb",
    "é",
    "\ud800",
    "🙂",
    "..",
    "../x",
    "/dev/zero",
    "true",
    "1",
    "nan",
    "x" * 5000,
)
_NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    48,
    96,
    128,
    255,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    10**40,
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-320,
    1e308,
)
_OTHERS = (None, True, False, [], {}, [[]], {"": None}, [1, 2], ["a"], float("nan"), float("inf"), float("-inf"))
_DEEP = 3000
_RAW = (
    "1e400",
    "-1e400",
    "9" * 5000,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    '"\\ud800"',
    "1,1",
    "",
)
SOUND = 0.02  # the share of inputs that stay as they were: they must be accepted
_RAW_MARK = "\ue000raw\ue000"


def damage_bytes(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return `data` after one to four changes; parts of `others` may be put into it."""
    if rng.random() < SOUND:
        return data
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(changed) + 1)
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), len(changed) - at)
        match rng.randrange(8):
            case 0:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + length] = rng.randbytes(length)
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 100))
            case 4:
                del changed[at:]
            case 5:
                size = rng.choice((1, 2, 4, 8))
                number = (rng.choice(_SIZES) + rng.choice((0, 0, 1, -1))) % 2 ** (8 * size)
                changed[at : at + size] = number.to_bytes(size, "little")
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                changed[at : at + length] = other[start : start + rng.choice((1, 8, 64, 4096))]
            case _:
                changed[at : at + length] = bytes([rng.choice((0, 0x22, 0x7F, 0x80, 0xFF))]) * length
    return bytes(changed)


def damage_json(rng: random.Random, document: Any) -> bytes:
    """Return a JSON document as text after one to three of its values, keys or members were changed."""
    if rng.random() < SOUND:
        return json.dumps(document).encode()
    copy, raw = document, ""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        copy = json.loads(json.dumps(copy))  # no part of it stands in two places
        places = list(_places(copy))
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(10):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice((*_TEXTS, *parent))] = parent.pop(key)
            case 2:
                other_parent, other_key = rng.choice(places)
                parent[key] = json.loads(json.dumps(other_parent[other_key]))
            case 3:
                parent[key] = _near(rng, parent[key])
            case 4:
                raw = rng.choice(_RAW)
                parent[key] = _RAW_MARK
            case 5:
                parent[key] = rng.choice(_TEXTS)
            case 6 | 7:
                parent[key] = rng.choice(_NUMBERS)
            case _:
                parent[key] = deepcopy(rng.choice(_OTHERS))
    text = json.dumps(copy).replace(json.dumps(_RAW_MARK), raw)
    data = text.encode("utf-8", "surrogatepass")
    return damage_bytes(rng, data, [data]) if rng.random() < 0.15 else data


def _near(rng: random.Random, value: Any) -> Any:
    """Return a value that a wrong program could have written in place of `value`."""
    if isinstance(value, bool) or value is None:
        return rng.choice((not value, str(value).lower(), int(bool(value))))
    if isinstance(value, (int, float)):
        return rng.choice((-value, value + 1, value - 1, value * 2, value / 2, str(value), [value], float(value)))
    if isinstance(value, str):
        return rng.choice((value.upper(), value[:-1], value + value, [value], {"content": value}))
    if isinstance(value, list):
        return rng.choice((value[:-1], value[::-1], value * 2, dict(enumerate(value[:3])), [value]))
    return rng.choice((list(value), list(value.items()), {**value, "": value}))


def _places(document: Any) -> Any:
    """Yield each container with each of its keys or positions; of a long container only some."""
    pending = [document]
    while pending:
        parent = pending.pop()
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        for key in keys if len(keys) <= 40 else [*keys[:20], *keys[-20:]]:
            yield parent, key
            if isinstance(parent[key], (dict, list)):
                pending.append(parent[key])

"""Map the members of a zip archive that stores them uncompressed, as PyTorch writes its files.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (4.3 and 4.5.3). No claim of the archive about
an offset or a size is believed before it is compared with the file; members may not overlap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from tritgguf.converter.core.settings import shown
from tritgguf.converter.core.system import mapped
from tritgguf.converter.core.tensors import ByteArray
from tritgguf.converter.errors import SourceError

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, END64_LOCATOR = b"PK\x06\x06", b"PK\x06\x07"
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_ENCRYPTED, _ZIP64, _IN_ZIP64 = 1, 1, 0xFFFFFFFF
MAX_COMMENT = 0xFFFF
MAX_DIRECTORY = 64_000_000  # bytes: room for half a million members


class _Entry(NamedTuple):
    """What the archive's directory says of one member."""

    name: bytes
    flags: int
    method: int
    packed_bytes: int
    n_bytes: int
    offset: int


def read_members(path: Path) -> dict[str, ByteArray]:
    """Return the bytes of every member by name, mapped; raise SourceError where the archive is damaged or compressed.

    The order is that of the archive's directory. Raises OSError where the file can't be read.
    """
    data = mapped(path)
    start, stop = _directory(path, data)
    members: dict[str, ByteArray] = {}
    spans: list[tuple[int, int, str]] = []
    for entry in _entries(path, data[start:stop].tobytes()):
        name = _text(path, entry.name)
        if name in members:
            _refuse(path, f"two members are called {shown(name)}")
        first, end = _span(path, data, entry, name, start)
        members[name] = data[first:end]
        spans.append((entry.offset, end, name))
    end, previous = 0, ""
    for first, stop, name in sorted(spans):
        if first < end:
            _refuse(path, f"the members {shown(previous)} and {shown(name)} overlap")
        end, previous = stop, name
    return members


def _refuse(path: Path, what: str) -> NoReturn:
    raise SourceError(f"{path.name}: {what}; the file is damaged, fetch it again")


def _text(path: Path, name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        _refuse(path, f"a member's name, {shown(name)}, isn't UTF-8 text")


def _directory(path: Path, data: ByteArray) -> tuple[int, int]:
    """Return where the archive's directory begins and ends, in bytes from the file's begin."""
    tail_bytes = min(len(data), _END.size + MAX_COMMENT)
    tail_start = len(data) - tail_bytes
    at = data[tail_start:].tobytes().rfind(END)
    if at < 0 or tail_bytes - at < _END.size:
        _refuse(path, "the zip archive's directory is missing: the file is cut off")
    end = tail_start + at
    *_, directory_bytes, offset, _ = _END.unpack(data[end : end + _END.size].tobytes())
    if end >= _LOCATOR.size:
        signature, _, end64, _ = _LOCATOR.unpack(data[end - _LOCATOR.size : end].tobytes())
        if signature == END64_LOCATOR:
            end = _checked_end64(path, data, end64, end - _LOCATOR.size)
            *_, directory_bytes, offset = _END64.unpack(data[end : end + _END64.size].tobytes())
    if offset + directory_bytes > end or directory_bytes > MAX_DIRECTORY:
        _refuse(path, f"the zip archive's directory claims {directory_bytes} bytes from byte {offset}")
    return offset, offset + directory_bytes


def _checked_end64(path: Path, data: ByteArray, start: int, most: int) -> int:
    if start + _END64.size > most or data[start : start + 4].tobytes() != END64:
        _refuse(path, f"the zip archive's 64-bit directory isn't at byte {start}")
    return start


def _entries(path: Path, directory: bytes) -> Iterator[_Entry]:
    at = 0
    while at < len(directory):
        if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != CENTRAL:
            _refuse(path, "the zip archive's directory is broken")
        fields = _CENTRAL.unpack_from(directory, at)
        flags, method, packed_bytes, n_bytes, name_bytes, extra_bytes, comment_bytes = (
            fields[index] for index in (3, 4, 8, 9, 10, 11, 12)
        )
        at += _CENTRAL.size
        name, extra = directory[at : at + name_bytes], directory[at + name_bytes : at + name_bytes + extra_bytes]
        at += name_bytes + extra_bytes + comment_bytes
        if at > len(directory):
            _refuse(path, "the zip archive's directory is broken")
        n_bytes, packed_bytes, offset = _wide(path, extra, [n_bytes, packed_bytes, fields[16]])
        yield _Entry(name, flags, method, packed_bytes, n_bytes, offset)


def _wide(path: Path, extra: bytes, fields: list[int]) -> list[int]:
    """Return the fields; those that don't fit 32 bits are in the extra field of zip64, in this order."""
    if _IN_ZIP64 not in fields:
        return fields
    at = 0
    while at + 4 <= len(extra):
        kind, n_bytes = struct.unpack_from("<2H", extra, at)
        if kind == _ZIP64:
            wide = extra[at + 4 : at + 4 + n_bytes]
            values = iter([number for (number,) in struct.iter_unpack("<Q", wide[: len(wide) // 8 * 8])])
            found = [next(values, -1) if field == _IN_ZIP64 else field for field in fields]
            if -1 not in found:
                return found
        at += 4 + n_bytes
    _refuse(path, "a member of 4 GB or more has no 64-bit size in the zip archive's directory")


def _span(path: Path, data: ByteArray, entry: _Entry, name: str, directory_start: int) -> tuple[int, int]:
    """Return where a member's bytes begin and end, checked against its own header."""
    if entry.flags & _ENCRYPTED or entry.method != 0 or entry.packed_bytes != entry.n_bytes:
        raise SourceError(
            f"{path.name}: the member {shown(name)} is compressed or encrypted; expected members that are stored as "
            "they are, as in a state dict that torch.save writes (a TorchScript program has others): save it again"
        )
    start = entry.offset + _LOCAL.size
    if start > directory_start:
        _refuse(path, f"the member {shown(name)} lies outside the file")
    signature, *_, name_bytes, extra_bytes = _LOCAL.unpack(data[entry.offset : start].tobytes())
    if signature != LOCAL or data[start : start + name_bytes].tobytes() != entry.name:
        _refuse(path, f"the member {shown(name)} isn't where the zip archive's directory says")
    start += name_bytes + extra_bytes
    if start + entry.n_bytes > directory_start:
        _refuse(path, f"the member {shown(name)} claims {entry.n_bytes} bytes, more than the file has there")
    return start, start + entry.n_bytes

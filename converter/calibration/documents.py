"""Files of text as documents: plain text, JSON lines or a JSON array, each also gzipped, and Parquet.

Only the start of a file is read: it may be a shard of gigabytes, and calibration takes some hundred kilobytes.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias

from tritgguf.converter.errors import SourceError

MOST_BYTES = 8 << 20  # of a file, after gzip; of Parquet's texts. Some 4000 chunks of 512 tokens
GZIP, PARQUET, PLAIN, JSON = ".gz", ".parquet", (".txt", ".md"), (".jsonl", ".json")
TEXT, CONVERSATIONS = "text", ("messages", "conversations", "conversation")
EXPECTED = 'expected an object with "text", or "messages" or "conversations" with roles and contents'
# The keys of a message, and ShareGPT's (https://huggingface.co/docs/trl/dataset_formats has both).
_SPELLINGS = (("role", "content"), ("from", "value"))
_ROLES = {"human": "user", "gpt": "assistant"}
PYARROW = 17  # before 14.0.1, reading a file could run code in it: CVE-2023-47248
_PIECE_BYTES = 1 << 20
_ROWS = 64  # are decoded at once
_SHOWN = 12
_GAP = re.compile(r"[\s,]*")

Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """A text, or the messages of a conversation, each with "role" and "content"; `place` says where it was found."""

    place: str
    content: str | list[Message]

    @property
    def n_bytes(self) -> int:
        """About how many bytes of text it has."""
        texts = [self.content] if isinstance(self.content, str) else [message["content"] for message in self.content]
        return sum(len(text.encode("utf-8")) for text in texts)


def is_readable(name: str) -> bool:
    """Whether a file's name says that it holds text that is read here."""
    return _kind(name) in (*PLAIN, *JSON) or name.lower().endswith(PARQUET)


def documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a file, in order, as far as `documents_in` reads it; raise SourceError as that does."""
    try:
        with path.open("rb") as stream:
            yield from documents_in(stream, str(path))
    except OSError as error:
        raise _unreadable(str(path), error.strerror or str(error)) from error


def documents_in(stream: BinaryIO, name: str, most: int = MOST_BYTES) -> Iterator[Document]:
    """Yield the documents at the start of a file, up to about `most` bytes of it; what is cut off there is left out.

    The name's ending tells what it is: .jsonl and .json have objects, .parquet has rows, any other file is one text.
    Raises SourceError where the file is damaged, or where an object or the columns hold no text, and what reading
    `stream` raises.
    """
    if name.lower().endswith(PARQUET):
        yield from _rows(stream, name, most)
        return
    text, is_cut = _start(stream, name, most)
    if _kind(name) not in JSON:
        yield Document(name, text[: text.rfind("\n") + 1] or text if is_cut else text)
    elif _kind(name) == ".json" and text.lstrip().startswith("["):
        yield from _array(text, name, is_cut)
    else:
        lines = text.split("\n")
        for number, line in enumerate(lines[:-1] if is_cut else lines, 1):
            if line.strip():
                yield from _document(f"{name}, line {number}", _parsed(f"{name}, line {number}", line))


def _kind(name: str) -> str:
    return PurePosixPath(name.lower().removesuffix(GZIP)).suffix


def _start(stream: BinaryIO, name: str, most: int) -> tuple[str, bool]:
    """Return the first `most` bytes of a file as text, and whether that isn't all."""
    try:
        data = (gzip.GzipFile(fileobj=stream) if name.lower().endswith(GZIP) else stream).read(most + 1)
        is_cut = len(data) > most
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:most], not is_cut)
    except UnicodeDecodeError as error:
        raise _unreadable(name, "isn't UTF-8 text") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unreadable(name, "damaged or cut off") from error
    return io.StringIO(text, None).read(), is_cut  # with \n for other line ends


def _unreadable(name: str, reason: str) -> SourceError:
    return SourceError(f"{name}: can't be read ({reason}); give another file")


def _parsed(place: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: isn't JSON; {EXPECTED}") from error


def _array(text: str, name: str, is_cut: bool) -> Iterator[Document]:
    """Yield the documents of a JSON array, but for an entry that is cut off."""
    decoder, number, position = json.JSONDecoder(), 0, _behind_gap(text, text.index("[") + 1)
    while not text.startswith("]", position):
        number += 1
        try:
            found, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            if is_cut:
                return
            raise SourceError(f"{name}, entry {number}: isn't JSON; {EXPECTED}") from error
        yield from _document(f"{name}, entry {number}", found)
        position = _behind_gap(text, position)
    if _behind_gap(text, position + 1) < len(text):
        raise SourceError(f"{name}: goes on behind its array of {number} entries; {EXPECTED}")


def _behind_gap(text: str, position: int) -> int:
    found = _GAP.match(text, position)
    assert found is not None
    return found.end()


def _document(place: str, found: object) -> Iterator[Document]:
    """Yield what an object or a row holds: nothing where its text is null."""
    if not isinstance(found, dict):
        raise SourceError(f"{place}: {EXPECTED}")
    column = _column(found)
    if column is None:
        raise SourceError(_without_text(place, found))
    content = found[column]
    if content is None:
        return
    if column == TEXT and isinstance(content, str):
        yield Document(place, _encodable(content) + "\n")
        return
    messages = [_message(message) for message in content] if column != TEXT and isinstance(content, list) else []
    if not messages or None in messages:
        raise SourceError(f"{place}: {EXPECTED}; its {column} is {content!r:.60}")
    yield Document(place, [message for message in messages if message])


def _encodable(text: str) -> str:
    """Return a text of JSON without halves of surrogate pairs, which are no characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _without_text(place: str, columns: Iterable[str]) -> str:
    names = [repr(column)[1:-1] for column in columns]  # in one line
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{place}: has {', '.join(names[:_SHOWN]) or 'nothing':.300}{more}; {EXPECTED}"


def _column(columns: Collection[str]) -> str | None:
    return next((column for column in (TEXT, *CONVERSATIONS) if column in columns), None)


def _message(found: object) -> Message | None:
    """Return a message with "role" and "content" instead of ShareGPT's keys; None where it has neither."""
    if not isinstance(found, dict):
        return None
    for role, content in _SPELLINGS:
        if isinstance(found.get(role), str) and isinstance(found.get(content), str):
            others = {key: value for key, value in found.items() if key not in (role, content) and value is not None}
            return {**others, "role": _ROLES.get(found[role], found[role]), "content": _encodable(found[content])}
    return None


def _rows(stream: BinaryIO, name: str, most: int) -> Iterator[Document]:
    """Yield the rows of a Parquet file; of other columns than the one with text, nothing is read."""
    try:
        from pyarrow import ArrowException, __version__, parquet  # not at the top: an extra has it, and it loads slowly
    except ImportError:
        raise SourceError(f"{name}: Parquet needs pyarrow, which isn't installed: pip install pyarrow") from None
    if int(__version__.split(".")[0]) < PYARROW:
        raise SourceError(
            f"{name}: Parquet needs pyarrow {PYARROW} or newer, found {__version__}: pip install --upgrade pyarrow"
        )
    left, number = most, 0
    try:
        file = parquet.ParquetFile(stream, buffer_size=_PIECE_BYTES, pre_buffer=False)
        column = _column(file.schema_arrow.names)
        if column is None:
            raise SourceError(_without_text(name, file.schema_arrow.names))
        for row in (row for batch in file.iter_batches(_ROWS, columns=[column]) for row in batch.to_pylist()):
            number += 1
            for document in _document(f"{name}, row {number}", row):
                if (left := left - document.n_bytes) < 0:
                    return
                yield document
    except ArrowException as error:
        raise _unreadable(name, f"isn't sound Parquet: {' '.join(str(error).split()):.200}") from error

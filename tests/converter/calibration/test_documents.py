"""The same documents come out of every kind of file, as far as it is read."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tritgguf.converter.calibration.documents import documents, documents_in, is_readable
from tritgguf.converter.errors import SourceError

ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]
Write = Callable[[Path, list[dict[str, Any]]], None]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")


def array(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1), "utf-8")


def zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def columns(path: Path, rows: list[dict[str, Any]]) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path, row_group_size=2)


def found(path: Path) -> list[Any]:
    return [document.content for document in documents(path)]


def beginning(path: Path, most: int) -> list[Any]:
    with path.open("rb") as stream:
        return [document.content for document in documents_in(stream, str(path), most)]


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", lines), ("a.json", lines), ("a.json", array), ("A.JSONL.GZ", zipped), ("a.parquet", columns)],
)
def test_texts_and_conversations(name: str, write: Write, tmp_path: Path) -> None:
    texts = [{"id": 1, "text": "one\u2028line"}, {"id": 2, "text": None}, {"id": 3, "text": "é"}]
    write(tmp_path / name, texts)
    assert found(tmp_path / name) == ["one\u2028line\n", "é\n"]
    for column, messages in (("messages", ASKED), ("conversations", SHAREGPT), ("conversation", ASKED)):
        write(tmp_path / name, [{"id": 1, column: messages}, {"id": 2, column: messages[:1]}])
        assert found(tmp_path / name) == [ASKED, ASKED[:1]]


def test_halves_of_characters(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n{"messages": [{"role": "user", "content": "\\udc00"}]}')
    assert found(tmp_path / "a.jsonl") == ["a?b\n", [{"role": "user", "content": "?"}]]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.txt.gz"])
def test_other_files_are_one_text(name: str, tmp_path: Path) -> None:
    data = b'{"text": "one"}\r\ntwo'
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert found(tmp_path / name) == ['{"text": "one"}\ntwo']


def test_only_the_start_is_read(tmp_path: Path) -> None:
    rows = [{"text": f"{number:04} éé"} for number in range(1000)]
    written: list[tuple[str, Write]] = [("a.jsonl", lines), ("a.json", array), ("b.jsonl.gz", zipped)]
    for name, write in written:
        write(tmp_path / name, rows)
        start = len(beginning(tmp_path / name, 5000))
        assert 100 < start < 250, name
        assert found(tmp_path / name)[:start] == [f"{row['text']}\n" for row in rows[:start]]
    (tmp_path / "a.txt").write_text("0123456\n" * 1000)
    assert beginning(tmp_path / "a.txt", 5004) == ["0123456\n" * 625]


def test_only_the_start_of_parquet_is_read(tmp_path: Path) -> None:
    columns(tmp_path / "a.parquet", [{"text": "0123456"}] * 1000)
    assert len(beginning(tmp_path / "a.parquet", 80)) == 10


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.jsonl",
            b'{"prompt": "a", "answer": "b"}',
            'a.jsonl, line 1: has prompt, answer; expected an object with "te',
        ),
        ("a.json", b'[{"text": "a"}, {"prompt": "a"}]', "a.json, entry 2: has prompt; expected an object with"),
        ("a.json", b'[{"text": "a"}, {"text"', "a.json, entry 2: isn't JSON; expected an object with"),
        ("a.json", b'{"a": 1}'.replace(b":", b":\n"), "a.json, line 1: isn't JSON"),
        ("a.jsonl", b'{"text": ["a"]}', "roles and contents; its text is ['a']"),
        ("a.jsonl", b'{"messages": []}', "roles and contents; its messages is []"),
        ("a.jsonl", b'{"conversations": [{"from": "human"}]}', "its conversations is [{'from': 'human'}]"),
        ("a.jsonl", b'{"a\\nb": 1}', r"a.jsonl, line 1: has a\nb; expected an object with"),
        ("a.jsonl", b'["text"]', "a.jsonl, line 1: expected an object with"),
        ("a.json", b'["text"]', "a.json, entry 1: expected an object with"),
        ("a.json", b'[{"text": "a"}]\n[]', "a.json: goes on behind its array of 1 entries; expected an object"),
        (
            "a.txt.gz",
            gzip.compress(b"a" * 99, mtime=0)[:-9],
            "a.txt.gz: can't be read (damaged or cut off); give another",
        ),
        ("a.txt.gz", b"no gzip", "a.txt.gz: can't be read (damaged or cut off)"),
        ("a.txt", b"\xff", "a.txt: can't be read (isn't UTF-8 text)"),
    ],
)
def test_what_holds_no_text(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        found(tmp_path / name)
    assert message in str(caught.value)


def test_parquet_that_holds_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns(path, [{"prompt": "a", "answer": "b"}])
    with pytest.raises(SourceError, match=r"a\.parquet: has prompt, answer; expected an object with"):
        found(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"a\.parquet: can't be read \(isn't sound Parquet: .*\); give another file"):
        found(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        SourceError, match=r"a\.parquet: Parquet needs pyarrow, which isn't installed: pip install pyarr"
    ):
        found(tmp_path / "a.parquet")


def test_parquet_with_a_pyarrow_that_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip("pyarrow"), "__version__", "14.0.0")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"pyarrow 17 or newer, found 14\.0\.0: pip install --upgrade pyarrow"):
        found(tmp_path / "a.parquet")


def test_which_names_are_readable() -> None:
    names = ["a.txt", "b/a.MD", "a.json.gz", "a.parquet", "a.parquet.gz", "a.zst", "a.py", "a", "a.tar.gz"]
    assert [name for name in names if is_readable(name)] == names[:4]

"""Datasets on a hub on this machine, with the real client: which file is read, how much of it, and what is said."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import build
from tests.command_line import run_captured
from tests.runtime.hub.hub_server import Fault, Hollow, HubServer
from tritgguf.converter.calibration.documents import documents
from tritgguf.converter.errors import HubError, SourceError
from tritgguf.converter.gguf_io.imatrix import read_imatrix
from tritgguf.runtime.hub.dataset import START_BYTES, WHOLE_BYTES, DatasetText, dataset_text
from tritgguf.runtime.hub.dataset_selection import choose_text
from tritgguf.runtime.hub.names import DatasetName, parse_dataset
from tritgguf.runtime.hub.snapshot import storage

CARD = {".gitattributes": b"*", "README.md": b"# A card\n" * 9, "dataset_infos.json": b"{}"}
SENT = "/resolve-cache/|^/datasets/"
OFFLINE = "huggingface_hub.constants.HF_HUB_OFFLINE"


def rows(n_bytes: int) -> list[str]:
    source = random.Random(0)
    return [source.randbytes(500).hex() for _ in range(n_bytes // 1000)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": "x", "text": text}) + "\n" for text in texts).encode()


def texts(found: DatasetText) -> list[object]:
    return [document.content for document in documents(found.path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("datasets/org/name", DatasetName("org/name")),
        ("hf.co/datasets/org/name@v1", DatasetName("org/name", "v1")),
        ("datasets/org/name:data/train.jsonl", DatasetName("org/name", None, "data/train.jsonl")),
        ("datasets/org/name@refs/convert/parquet", DatasetName("org/name", "refs/convert/parquet")),
        ("https://huggingface.co/datasets/org/name/", DatasetName("org/name")),
        ("https://huggingface.co/datasets/org/name/blob/main/a%20b.txt", DatasetName("org/name", "main", "a b.txt")),
        ("https://huggingface.co/datasets/org/name/tree/main/en", DatasetName("org/name", "main", "en")),
    ],
)
def test_names(text: str, expected: DatasetName) -> None:
    assert parse_dataset(text) == expected
    assert parse_dataset(str(expected)) == expected


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("org/name", "text.txt", "datasets/a.txt", "datasets/a/b.jsonl", "./datasets/org/name", "datasets", ""):
        assert parse_dataset(text) is None, text
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets" / "org").mkdir(parents=True)
    (tmp_path / "datasets" / "org" / "name").write_text("mine")
    assert parse_dataset("datasets/org/name") is None
    with pytest.raises(
        HubError, match=r"hf.co/org/name isn't the address of a dataset on the hub; expected datasets/org"
    ):
        parse_dataset("hf.co/org/name")


WIKITEXT = [
    f"wikitext-{size}/{split}-{number:05}-of-{count:05}.parquet"
    for size, count in (("103-raw-v1", 2), ("2-raw-v1", 1))
    for split in ("test", "train", "validation")
    for number in range(count if split == "train" else 1)
]


@pytest.mark.parametrize(
    ("wanted", "files", "expected"),
    [
        (None, ["a.jsonl"], ("a.jsonl", 1)),
        (None, ["data/test.jsonl", "data/train.jsonl"], ("data/train.jsonl", 1)),
        (None, ["trainer.txt", "a-train.txt"], ("a-train.txt", 1)),
        (None, ["default/test/0000.parquet", "default/train/0001.parquet", "default/train/0000.parquet"],
         ("default/train/0000.parquet", 2)),
        (None, ["data/train_sft-00000-of-00003.parquet", "data/train_sft-00001-of-00003.parquet", "test.txt"],
         ("data/train_sft-00000-of-00003.parquet", 2)),
        ("wikitext-2-raw-v1", WIKITEXT, ("wikitext-2-raw-v1/train-00000-of-00001.parquet", 1)),
        ("wikitext-103-raw-v1", WIKITEXT, ("wikitext-103-raw-v1/train-00000-of-00002.parquet", 2)),
        ("2-raw-v1/test", WIKITEXT, ("wikitext-2-raw-v1/test-00000-of-00001.parquet", 1)),
        ("TRAIN", ["a/train.txt", "b/training.txt"], ("a/train.txt", 1)),
        ("README.md", ["a.txt"], ("README.md", 1)),
    ],
)  # fmt: skip
def test_which_file(wanted: str | None, files: list[str], expected: tuple[str, int]) -> None:
    assert choose_text(DatasetName("o/n", None, wanted), [*CARD, *files]) == expected


def test_the_card_and_the_licence_are_no_data() -> None:
    beside = ["LICENSE.txt", "README_zh.md", "en/readme.md", "state.json", "dataset_info.json", ".cache/a.txt"]
    data = ["state-of-the-union.txt", "readmes/a.txt", "licenses.jsonl"]
    for file in data:
        assert choose_text(DatasetName("o/n"), [*CARD, *beside, file]) == (file, 1)


@pytest.mark.parametrize(
    ("wanted", "files", "message"),
    [
        (None, ["b.txt", "a.txt"], "datasets/o/n@v1 holds 2 texts: name one: datasets/o/n@v1:a.txt, datasets/o/n@v1:b"),
        ("raw", WIKITEXT, "holds 6 texts with raw in their names: name one: datasets/o/n@v1:wikitext-103-raw-v1/test-"),
        ("c.txt", ["a.txt"], "datasets/o/n has no file c.txt at v1; name one that it has: datasets/o/n@v1:a.txt"),
        (None, ["a.zst", "load.py"], "datasets/o/n holds no text that is read here at v1 (.txt, .md, .jsonl, .json, "
         "each also with .gz, and .parquet); it holds .gitattributes, README.md, a.zst, dataset_infos.json, load.py; "
         "the hub may have it as Parquet: datasets/o/n@refs/convert/parquet"),
    ],
)  # fmt: skip
def test_no_file_or_too_many(wanted: str | None, files: list[str], message: str) -> None:
    name = DatasetName("o/n", "v1", wanted)
    with pytest.raises(HubError) as caught:
        choose_text(name, [*CARD, *files])
    assert message.replace("datasets/o/n@v1 holds", "datasets/o/n holds") in str(caught.value)


def test_a_small_file_comes_whole_and_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    data = lines(["one", "two"] * 999)
    repository = hub.add("datasets/tests/small", {**CARD, "train.jsonl": data, "test.jsonl": b"{}"})
    name, progress = DatasetName("tests/small"), list[tuple[str, int, int]]()
    found = dataset_text(name, on_progress=lambda *figures: progress.append(figures))
    assert found.path == storage("tests/small", "dataset") / "snapshots" / repository.refs["main"] / "train.jsonl"
    assert (found.path.read_bytes(), found.whole, str(found)) == (data, True, "datasets/tests/small is train.jsonl")
    assert progress[-1] == ("downloading", len(data), len(data))
    assert hub.sent(SENT) == len(data)
    hub.clear()
    assert dataset_text(name) == found
    assert [request.path for request in hub.requests] == ["/api/datasets/tests/small"]
    monkeypatch.setattr(OFFLINE, True)
    assert dataset_text(name) == found
    monkeypatch.setattr(OFFLINE, False)
    old = repository.refs["main"]
    repository.commit({"train.txt": b"new"})
    assert texts(dataset_text(name)) == ["new"]
    assert texts(dataset_text(DatasetName("tests/small", old))) == texts(found)


def shard(ending: str) -> bytes | Hollow:
    """A file that is too large to be fetched whole, with an odd number of rows in its start."""
    if ending == "parquet":
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        table = pa.table({"text": (texts := rows(WHOLE_BYTES // 2 + 2000)), "other": texts})
        parquet.write_table(table, out := io.BytesIO(), compression="none", use_dictionary=False)
        return out.getvalue()
    data = lines(rows(2 * START_BYTES))
    if ending == "jsonl.gz":
        return Hollow(gzip.compress(data, 1), 10**10)
    return Hollow("\n".join(rows(2 * START_BYTES)).encode() if ending == "txt" else data, 10**10)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "txt", "parquet"])
def test_of_a_large_file_the_start_comes_and_once(hub: HubServer, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = f"data/train-00000-of-00002.{ending}"
    repo = f"tests/large-{ending.replace('.', '-')}"
    repository = hub.add(f"datasets/{repo}", {file: shard(ending), file.replace("0-of", "1-of"): b""})
    progress: list[tuple[str, int, int]] = []
    found = dataset_text(DatasetName(repo), on_progress=lambda *figures: progress.append(figures))
    read, expected = [str(text) for text in texts(found)], [f"{row}\n" for row in rows(2 * START_BYTES)]
    assert read == (["".join(expected)[: len(read[0])]] if ending == "txt" else expected[: len(read)])
    assert 0.9 * START_BYTES < sum(map(len, read)) <= START_BYTES
    assert not found.whole
    assert re.fullmatch(
        rf"datasets/{repo} is {re.escape(file)}, the first of 2 files, the start of it \(.* MB\)", str(found)
    )
    assert progress[-1][0] == "downloading"
    assert 0.9 * START_BYTES < progress[-1][1] <= START_BYTES == progress[-1][2]
    assert hub.sent(SENT) < 2 * START_BYTES
    hub.clear()
    assert dataset_text(DatasetName(repo)) == found
    assert dataset_text(DatasetName(repo, repository.refs["main"])).path == found.path
    monkeypatch.setattr(OFFLINE, True)
    assert dataset_text(DatasetName(repo)).path == found.path
    assert not hub.sent(SENT)
    assert not list(storage(repo, "dataset").glob("blobs/*"))


def test_a_start_that_breaks_off_goes_on(hub: HubServer) -> None:
    hub.add("datasets/tests/broken", {"a.jsonl": shard("jsonl")})
    hub.faults += [Fault("a.jsonl", after=10_000), Fault("a.jsonl", status=503)]
    assert len(texts(dataset_text(DatasetName("tests/broken")))) > 1000


def test_a_start_without_a_document_is_refused(hub: HubServer) -> None:
    hub.add("datasets/tests/endless", {"a.jsonl": Hollow(b'{"text": "' + b"a" * 2 * START_BYTES, 10**10)})
    with pytest.raises(HubError, match=r"endless: a.jsonl has no whole document in its first bytes: name another file"):
        dataset_text(DatasetName("tests/endless"))


def test_parquet_that_would_take_too_much(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritgguf.runtime.hub.dataset.MOST_FETCHED", 1_500_000)
    hub.add("datasets/tests/much", {"a.parquet": shard("parquet")})
    with pytest.raises(HubError) as caught:
        dataset_text(DatasetName("tests/much"))
    assert re.fullmatch(
        r"datasets/tests/much: of a.parquet \(.* MB\), more than 1.50 MB would have to be fetched for some text: name "
        "another file",
        str(caught.value),
    )
    assert hub.sent(SENT) < 1_500_000


@pytest.fixture
def fails(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., str]:
    """`convert` with a dataset, which leaves no file; returns the error's line."""
    model, out = build("llama-tied", tmp_path / "model"), tmp_path / "out.gguf"

    def line(dataset: str, *options: object) -> str:
        arguments = ("convert", model, out, "--type", "q2_0", "--method", "gptq", "--calibration", dataset, *options)
        code, _, errors = run_captured(monkeypatch, capsys, *arguments)
        assert code == 1
        assert list(tmp_path.iterdir()) == [model]
        return errors

    return line


def test_errors_are_one_line(hub: HubServer, fails, monkeypatch: pytest.MonkeyPatch) -> None:
    page = f"{hub_site()}/datasets/tests/gated"
    gated = hub.add("datasets/tests/gated", {"a.txt": b"a"}, gated=True)
    assert fails("datasets/tests/gated") == (
        f"error: datasets/tests/gated is gated: accept its conditions at {page}, then set HF_TOKEN, or run `hf auth "
        "login`\n"
    )
    gated.commit({"a.jsonl": Hollow(b"", 10**10)})
    assert fails("datasets/tests/gated").startswith("error: datasets/tests/gated is gated: accept its conditions")
    assert fails("hf.co/datasets/tests/nothing") == (
        f"error: {hub_site()} has no dataset datasets/tests/nothing, and there is no such path here: check the "
        "spelling, or it is private: then set HF_TOKEN, or run `hf auth login`\n"
    )
    assert "datasets/tests/gated has no revision v9: give a branch" in fails("datasets/tests/gated@v9")
    monkeypatch.setattr(OFFLINE, True)
    assert "datasets/tests/other isn't complete in " in fails("datasets/tests/other")


def hub_site() -> str:
    from tests.hub_endpoint import ENDPOINT

    return ENDPOINT


def test_other_columns_are_told(hub: HubServer, fails) -> None:
    large = b'{"instruction": "a", "output": "b"}\n' * 200_000
    hub.add("datasets/tests/columns", {"large.jsonl": Hollow(large, 10**10)})
    assert fails("datasets/tests/columns") == (
        "error: datasets/tests/columns:large.jsonl, line 1: has instruction, output; expected an object with "
        '"text", or "messages" or "conversations" with roles and contents\n'
    )


def test_nothing_is_fetched_for_what_makes_no_sense(hub: HubServer, fails) -> None:
    hub.add("datasets/tests/sense", {"a.txt": b"a"})
    assert "--calibration-chunks 1: expected at least 2" in fails("datasets/tests/sense", "--calibration-chunks", 1)
    assert not hub.requests
    with pytest.raises(SourceError, match="can't be read"):
        next(documents(Path("datasets/tests/sense")))


def test_an_importance_matrix_on_a_dataset(
    hub: HubServer, demo_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    written = ["so it goes on " * 40, "and on " * 80]
    (tmp_path / "text.txt").write_text("".join(f"{text}\n" for text in written))
    hub.add("datasets/tests/words", {"train.jsonl.gz": gzip.compress(lines(written)), "chat.json": b'{"messages": ['})
    given = {"file": tmp_path / "text.txt", "dataset": "datasets/tests/words"}
    for name, text in given.items():
        command = ("imatrix", demo_gguf, "--text", text, "-o", tmp_path / f"{name}.gguf", "--ctx", 32, "--chunks", 2)
        assert run_captured(monkeypatch, capsys, *command)[0] == 0
    one, other = (read_imatrix(tmp_path / f"{name}.gguf").entries for name in given)
    assert one.keys() == other.keys()
    assert all((one[layer].sums == other[layer].sums).all() for layer in one)
    hub.add("datasets/tests/words", {"chat.jsonl": b'{"messages": [{"from": "human", "value": "Hi"}]}'})
    code, _, errors = run_captured(monkeypatch, capsys, *command[:-6], "-o", tmp_path / "none.gguf")
    assert (code, errors.count("\n")) == (1, 2)
    assert errors.endswith("chat.jsonl, line 1: is a conversation; expected plain text: name another dataset\n")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "file.gguf", "dataset.gguf"}

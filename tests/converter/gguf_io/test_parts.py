"""Split files: all or none, as large as allowed, read back by the runtime, by gguf and as a source."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

import tritgguf.runtime
from tests.attacks.damage import assert_one_error_line, poison
from tests.checkpoints import build
from tests.command_line import run, run_captured
from tritgguf.converter import EngineError, SourceError, convert, plan
from tritgguf.converter.gguf_io.parts import part_paths
from tritgguf.converter.gguf_io.reader import read_gguf

SIZE = 150_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama-gqa", tmp_path_factory.mktemp("split") / "model")


@pytest.fixture(scope="module")
def parts(model: Path) -> list[Path]:
    result = convert(model, model.parent / "split.gguf", "tq2_0", max_shard_size=SIZE)
    found = sorted(model.parent.glob("*.gguf"))
    assert result.out == found[0]
    assert result.strings_checked
    return found


def test_names_keys_and_sizes(model: Path, parts: list[Path]) -> None:
    planned = plan(model, "tq2_0", max_shard_size=SIZE)
    n_parts = len(parts)
    assert n_parts > 2
    assert [path.name for path in parts] == [f"split-{i:05d}-of-{n_parts:05d}.gguf" for i in range(1, n_parts + 1)]
    assert [path.stat().st_size for path in parts] == [part.file_bytes for part in planned.parts]
    assert planned.file_bytes == sum(path.stat().st_size for path in parts)
    names = []
    for number, path in enumerate(parts):
        reader = GGUFReader(path)
        keys = {key: reader.fields[f"split.{key}"].contents() for key in ("no", "count", "tensors.count")}
        assert keys == {"no": number, "count": n_parts, "tensors.count": len(planned.tensors)}
        names += [tensor.name for tensor in reader.tensors]
        assert path.stat().st_size <= SIZE or len(reader.tensors) == 1
        assert ("tokenizer.ggml.tokens" in reader.fields) == (number == 0)
    assert names == [tensor.spec.name for tensor in planned.tensors]


def test_a_part_takes_what_fits(model: Path) -> None:
    """One byte less, and the last tensor of the first part moves on."""
    first = plan(model, "tq2_0", max_shard_size=2 * SIZE).parts[0]
    assert len(first.tensors) > 2
    same = plan(model, "tq2_0", max_shard_size=first.file_bytes).parts[0]
    less = plan(model, "tq2_0", max_shard_size=first.file_bytes - 1).parts[0]
    names = [[tensor.spec.name for tensor in part.tensors] for part in (first, same, less)]
    assert names[1] == names[0]
    assert names[2] == names[0][:-1]


def test_a_file_that_fits_stays_one(model: Path, tmp_path: Path) -> None:
    whole = convert(model, tmp_path / "whole.gguf", "tq2_0").out
    size = whole.stat().st_size
    again = convert(model, tmp_path / "again.gguf", "tq2_0", max_shard_size=size).out
    assert again.read_bytes() == whole.read_bytes()
    assert len(plan(model, "tq2_0", max_shard_size=size - 1).parts) == 2


def test_the_runtime_computes_the_same(model: Path, parts: list[Path], tmp_path: Path) -> None:
    whole = convert(model, tmp_path / "whole.gguf", "tq2_0").out
    logits = []
    for path in (whole, parts[0]):
        with tritgguf.runtime.open(path) as session:
            logits.append(session.logits(list(range(20, 40))))
    np.testing.assert_array_equal(*logits)


def test_the_runtime_wants_the_first_part(parts: list[Path]) -> None:
    with pytest.raises(EngineError, match=r"is part 2 of \d of a model; give the first part"):
        tritgguf.runtime.open(parts[1])


@pytest.mark.parametrize("given", [0, 1, -1])
def test_parts_are_one_source(given: int, model: Path, parts: list[Path], tmp_path: Path) -> None:
    whole = convert(model, tmp_path / "whole.gguf", "tq2_0").out
    joined = convert(parts[given], tmp_path / "joined.gguf", "tq2_0").out
    assert read_gguf(joined).metadata == {**read_gguf(whole).metadata}
    assert joined.read_bytes() == whole.read_bytes()


def test_missing_exchanged_and_renamed_parts(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in parts]
    copies[1].rename(tmp_path / "other.gguf")
    with pytest.raises(SourceError, match=copies[1].name):
        read_gguf(copies[0])
    with pytest.raises(SourceError, match=r"other.gguf is one of \d parts of a model; expected a name like"):
        read_gguf(tmp_path / "other.gguf")
    shutil.copy(parts[2], copies[1])
    with pytest.raises(SourceError, match=r"claims to be part 2 of \d, expected 1 of"):
        read_gguf(copies[0])


def test_no_part_appears_unless_all_do(tmp_path: Path, monkeypatch, capsys) -> None:
    model, out = build("llama-gqa", tmp_path / "model"), tmp_path / "out.gguf"
    assert run(monkeypatch, "convert", model, out, "--type", "tq2_0", "--max-shard-size", "150K") == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")}
    assert len(before) > 2
    assert run(monkeypatch, "convert", model, out, "--type", "tq2_0", "--max-shard-size", "150K") == 1
    assert_one_error_line(capsys, f"{min(before)} exists already; add --force")
    poison(model, "model.layers.1.mlp.down_proj.weight", float("nan"))
    assert run(monkeypatch, "convert", model, out, "--type", "tq1_0", "--max-shard-size", "150K", "--force") == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_sizes_in_the_plan_as_json(model: Path, monkeypatch, capsys) -> None:
    arguments = ("convert", model, "--type", "tq2_0", "--dry-run", "--json", "--max-shard-size", SIZE)
    code, printed, _ = run_captured(monkeypatch, capsys, *arguments)
    assert code == 0
    planned = json.loads(printed)
    assert sum(planned["part_bytes"]) == planned["file_bytes"]
    assert len(planned["part_bytes"]) > 2


def test_names_without_an_ending(tmp_path: Path) -> None:
    assert part_paths(tmp_path / "model", 2)[1].name == "model-00002-of-00002.gguf"
    assert part_paths(tmp_path / "model.gguf", 1) == [tmp_path / "model.gguf"]

"""The licence in README.md's front matter, as Hugging Face's cards write it, and the model's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub.file_download import repo_folder_name

from tests.checkpoints import build
from tritgguf.converter import convert, plan
from tritgguf.converter.errors import SourceError
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.card_metadata import card_metadata, loadable_name, model_name
from tritgguf.converter.model.description import Parameters

NAMES = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
}


def licence(folder: Path) -> tuple[dict[str, object], list[str]]:
    keys, notes = card_metadata(folder, {}, Parameters(1000, 1000))
    return {key: value.data for key, value in keys.items() if key.startswith("general.license")}, notes


@pytest.mark.parametrize(
    ("front_matter", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: 'apache-2.0'", {"license": "apache-2.0"}),
        ('license: other\nlicense_name: "my licence"', {"license": "other", "license_name": "my licence"}),
        ("license_link: https://example.org/a#b", {"license_link": "https://example.org/a#b"}),
        ("license_link: LICENSE", {"license_link": "LICENSE"}),
        ("license_name: 1.5", {"license_name": "1.5"}),
        ("license: mit # as agreed", {"license": "mit"}),
        ("license: [mit, apache-2.0]", {"license": "mit, apache-2.0"}),
        ("license:\n- mit\n- apache-2.0", {"license": "mit, apache-2.0"}),
        ("license: >-\n  two\n  lines", {"license": "two lines"}),
        ("license:\nlicense_name: null", {}),
        ("license: {a: b}", {}),
        ("widget:\n- text: 'license: mit'", {}),
        ("language: en", {}),
    ],
)
def test_licences(front_matter: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front_matter}\n---\n# A model\nlicense: not this\n", encoding="utf-8")
    keys = {NAMES[name]: text for name, text in expected.items()}
    assert licence(tmp_path) == (keys, [])


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_byte_order_mark_changes_nothing(line_end: str, tmp_path: Path) -> None:
    lines = ["---", "license: other", "license_name: größer", "---", "# A model", ""]
    (tmp_path / "README.md").write_bytes(line_end.join(lines).encode("utf-8-sig"))
    assert licence(tmp_path) == ({"general.license": "other", "general.license.name": "größer"}, [])


COMMIT = "0f3b1c2d4e5f60718293a4b5c6d7e8f901234567"


@pytest.mark.parametrize(
    ("repository", "expected"), [("microsoft/bitnet-b1.58-2B-4T", "bitnet-b1.58-2B-4T"), ("gpt2", "gpt2")]
)
@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_a_snapshot_is_named_after_its_repository(
    repository: str, expected: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's name is the one that huggingface_hub makes."""
    cache = tmp_path / ".cache" / "huggingface" / "hub"
    folder = cache / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots" / revision
    folder.mkdir(parents=True)
    assert model_name(folder) == model_name(Path(f"{folder}/")) == expected
    (tmp_path / "link").symlink_to(folder)
    assert model_name(tmp_path / "link") == expected
    monkeypatch.chdir(folder)
    assert model_name(Path()) == model_name(Path("../") / revision) == expected


def test_other_folders_have_their_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("model", "snapshots/model", "models--a--b/model", ".cache/model", "models--a--b/snapshots/c/model"):
        (tmp_path / path).mkdir(parents=True)
        assert model_name(tmp_path / path) == "model"
    assert model_name(tmp_path / "models--a--b" / "snapshots") == "snapshots"
    monkeypatch.chdir(tmp_path / "model")
    assert model_name(Path()) == "model"


def test_the_file_of_a_snapshot_has_the_repository_s_name(tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / "models--org--tiny-llama" / "snapshots" / COMMIT)
    written = convert(f"{model}/", tmp_path / "out.gguf", "f16", check=False)
    assert read_gguf(written.out).value("general.name") == "tiny-llama"


@pytest.mark.parametrize(
    "readme",
    [
        b"---\nlicense: mit\ntags: [a\n---\n",
        b"---\nlicense: a: b\n---\n",
        b"---\nlicense: mit\n# no end\n\n*A* model: it's *good*\n",
        b"---\nlicense: 2024-99-99\n---\n",
        b"---\nlicense: \xff\n---\n",
        b"---\nlicense: " + b"[" * 5000 + b"\n---\n",
    ],
)
def test_front_matter_that_cannot_be_read_is_noted(readme: bytes, tmp_path: Path) -> None:
    model = build("llama-tied", tmp_path / "model")
    (model / "README.md").write_bytes(readme)
    planned = plan(model, "tq2_0")
    (note,) = [note for note in planned.notes if "README.md" in note]
    assert note.startswith("README.md: the front matter can't be read, so the file has no licence key (")
    assert "\n" not in note
    assert licence(model)[0] == {}


def test_a_damaged_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.7', encoding="utf-8")
    with pytest.raises(SourceError, match=r"generation_config\.json is damaged at line 1, column 20"):
        card_metadata(tmp_path, {}, Parameters(1000, 1000))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Phi-3-mini", "Phi 3-mini"), ("PHI3.5", "PHI 3.5"), ("Phi-4-mini", "Phi-4-mini"), ("graphi32", "graphi 32")],
)
def test_llama_cpp_can_load_the_name(name: str, expected: str) -> None:
    """It sets attributes of Phi-3's special tokens where general.name has phi-3 or phi3, and throws without them."""
    assert loadable_name(name, ["<s>", "</s>", "<unk>"]) == expected
    assert loadable_name(name, ["<s>", "</s>", "<unk>", "<|endoftext|>", "a"]) == name

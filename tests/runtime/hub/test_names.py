"""Which texts name a model on the hub, and which are paths."""

from pathlib import Path

import pytest

from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.names import ModelName, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ModelName("org/name")),
        ("microsoft/bitnet-b1.58-2B-4T", ModelName("microsoft/bitnet-b1.58-2B-4T")),
        ("org/name@main", ModelName("org/name", "main")),
        (f"org/name@{COMMIT}", ModelName("org/name", COMMIT)),
        ("org/name@refs/pr/3", ModelName("org/name", "refs/pr/3")),
        ("org/name:Q2_0", ModelName("org/name", None, "Q2_0")),
        ("org/name:sub/model.gguf", ModelName("org/name", None, "sub/model.gguf")),
        ("org/name@v1:model-00001-of-00002.gguf", ModelName("org/name", "v1", "model-00001-of-00002.gguf")),
        ("hf.co/org/name", ModelName("org/name")),
        ("hf.co/org/name:Q2_0", ModelName("org/name", None, "Q2_0")),
        ("huggingface.co/org/name", ModelName("org/name")),
        ("https://huggingface.co/org/name", ModelName("org/name")),
        ("https://huggingface.co/org/name/?library=x", ModelName("org/name")),
        ("https://huggingface.co/org/name/tree/v1.0", ModelName("org/name", "v1.0")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", ModelName("org/name", "refs/pr/1")),
        ("https://hf.co/org/name/blob/main/a%20b.gguf", ModelName("org/name", "main", "a b.gguf")),
    ],
)
def test_names(text: str, expected: ModelName) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["name", "./org/name", "../org/name", "/org/name", "~/name", "org/name/", "a/b/c", "org/name.gguf", "C:/models/x",
     "C:\\models\\name", "org\\name", "models/x.safetensors", "", ".", "a--b/c", "a/b..c", "a/b.git", "-a/b", "a/b c",
     "gguf/", "a/b@", "a/b:"],
)  # fmt: skip
def test_paths(text: str) -> None:
    assert parse(text) is None


def test_what_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("org/name") == ModelName("org/name")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert parse("org/name") is None
    assert parse(Path("org/name")) is None


@pytest.mark.parametrize("text", ["https://huggingface.co/org", "hf.co/", "https://huggingface.co/a/b/c", "hf.co/../x"])
def test_addresses_that_name_no_model(text: str) -> None:
    with pytest.raises(HubError, match=r"isn't the address of a model on the hub; expected org/name"):
        parse(text)


def test_the_endpoint_of_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/hub/")
    assert parse("https://mirror.example/hub/org/name@v1") == ModelName("org/name", "v1")

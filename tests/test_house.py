"""What must stay true of the house: packages, imports, the public API, the tables in the docs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tritgguf.converter
import tritgguf.runtime
from tritgguf.converter.checkpoint.packing import packings
from tritgguf.converter.export.scheme import schemes
from tritgguf.converter.gguf_io.foreign_type import foreign_types
from tritgguf.converter.model.architecture import architectures
from tritgguf.converter.quant.codec import codecs
from tritgguf.converter.quant.method import methods
from tritgguf.runtime.cli import main as cli
from tritgguf.runtime.cli.command import commands

ROOT = Path(__file__).parent.parent
SOURCES = [*ROOT.glob("converter/**/*.py"), *ROOT.glob("runtime/**/*.py")]


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


USE_TORCH = ("affine", "blocks", "distill", "fit", "gptq", "moments", "student", "tune")
WITH_TORCH = {ROOT / "converter" / "calibration" / f"{name}.py" for name in USE_TORCH}


def test_the_converter_needs_no_runtime_and_nobody_but_calibration_needs_torch() -> None:
    for path in SOURCES:
        imported = imports_of(path)
        with_torch = any(name.split(".")[0] in ("torch", "transformers") for name in imported)
        assert with_torch == (path in WITH_TORCH), path
        if path.is_relative_to(ROOT / "converter"):
            assert not any(name.startswith("llama_cpp") for name in imported), path
            assert "tritgguf.runtime" not in path.read_text(), path  # in no string either


def test_transformers_runs_no_code_of_a_model() -> None:
    """Without the argument, transformers asks in the terminal whether to run the Python files of a model's folder."""
    calls = [
        (path.name, node.func.attr, {word.arg: ast.unparse(word.value) for word in node.keywords})
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in ("from_pretrained", "from_config")
    ]
    assert len(calls) == 5, calls
    assert [call for call in calls if call[2].get("trust_remote_code") != "False"] == []


def test_only_the_engine_touches_llama_cpp() -> None:
    users = {path for path in SOURCES if any(name.startswith("llama_cpp") for name in imports_of(path))}
    engine = ROOT / "runtime" / "engine"
    assert users == {engine / name for name in ("backend.py", "context.py", "vocab.py", "sampler.py")}


def test_importing_the_converter_loads_neither_the_native_runtime_nor_torch() -> None:
    code = "import sys; from tritgguf.converter import convert; print({'llama_cpp', 'torch'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_public_names() -> None:
    assert tritgguf.converter.__all__ == sorted(tritgguf.converter.__all__)
    assert {"convert", "plan", "quantize", "unpack_base3", "TritggufError"} <= set(tritgguf.converter.__all__)
    assert "open" in tritgguf.runtime.__all__
    for package in (tritgguf.converter, tritgguf.runtime):
        for name in package.__all__:
            assert hasattr(package, name), name


def table(title: str) -> list[str]:
    """Return the first cells of the table under a heading of docs/formats.md, without their backticks."""
    text = (ROOT / "docs" / "formats.md").read_text()
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    assert section is not None, title
    rows = re.findall(r"^\| (.+?) \|", section[1], re.M)
    return [row.strip("`") for row in rows[1:]]


def test_the_tables_of_the_docs_are_complete() -> None:
    assert sorted(table("Tensor types")) == sorted(codecs())
    assert sorted(table("Methods")) == sorted(methods())
    assert sorted(table("Schemes")) == sorted(schemes())
    assert sorted(table("Packings")) == sorted(packings())
    assert sorted(table("Types of other programs")) == sorted(kind.name for kind in foreign_types())
    assert sorted(table("Architectures")) == sorted(a.name for a in architectures())


@pytest.mark.parametrize("architecture", architectures(), ids=lambda architecture: architecture.name)
def test_every_architecture_says_which_classes_it_reads(architecture) -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    assert all(name in text for name in architecture.classes)


# They take longer to load than the help takes to print; commands load them when they run.
SLOW = {
    "numpy",
    "gguf",
    "llama_cpp",
    "tokenizers",
    "prompt_toolkit",
    "huggingface_hub",
    "httpx2",
    "starlette",
    "uvicorn",
}
EVERY_HELP = """
import contextlib, io, sys
from tritgguf.runtime.cli.main import main
for name in ["", *sys.argv[1:]]:
    sys.argv = ["tritgguf", *name.split(), "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main()
    print(name, "Usage: " in shown.getvalue(), *sys.modules)
"""


def test_help_loads_nothing_that_takes_long() -> None:
    command = [sys.executable, "-c", EVERY_HELP, *commands()]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for name, line in zip(["", *commands()], lines, strict=True):
        shown, *loaded = line.removeprefix(f"{name} ").split()
        assert shown == "True", name
        assert {"tritgguf", "typer"} <= set(loaded)
        assert not SLOW & set(loaded), name


def test_the_help_lists_every_type_and_method(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["tritgguf", "convert", "--help"])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        cli.main()
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {name for name, codec in codecs().items() if codec.for_linear} | set(methods()) <= words

"""The package `tritgguf` itself: its version, `python -m tritgguf`, and how little it loads."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import tritgguf


def test_the_version_is_the_distribution_s() -> None:
    assert tritgguf.__version__ == metadata.version("tritgguf")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "tritgguf", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"tritgguf {tritgguf.__version__}, llama-cpp-python ")
    assert done.stderr == ""


def test_importing_it_loads_only_the_package() -> None:
    """Found in its folder: what finds an editable install loads modules of its own."""
    code = "import sys; before = set(sys.modules); import tritgguf; print(*sorted(set(sys.modules) - before))"
    folder = str(Path(tritgguf.__file__).parents[1])
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "tritgguf\n"

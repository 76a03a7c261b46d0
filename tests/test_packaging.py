"""What the build backend makes of this checkout: wheels, sdists and editable installs, with a compiler and without."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import tritgguf
from tests.paths import ROOT

BUILD = """
import json, sys
import scikit_build_core.build
print(getattr(scikit_build_core.build, sys.argv[1])(sys.argv[2], json.loads(sys.argv[3])))
"""
PYTHON_ONLY = {"wheel.cmake": "false"}
BUILD_FILES = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")


def build(hook: str, out: Path, settings: dict[str, str], *, source: Path = ROOT, path: Path | None = None) -> Path:
    """Call a hook of the build backend in `source`, with nothing but the folder `path` on the PATH, if given."""
    out.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "CFLAGS")}
    if path:
        environment["PATH"] = str(path)
    command = [sys.executable, "-c", BUILD, hook, str(out), json.dumps(settings)]
    built = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    return out / built.stdout.split()[-1]


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def files_of_the_packages(root: Path) -> set[str]:
    """What is in the packages' folders and meant to be installed, by the names that it gets then."""
    found = set()
    for path in (*root.glob("converter/**/*"), *root.glob("runtime/**/*")):
        parts = path.relative_to(root).parts
        if path.is_file() and not {"native", "__pycache__"} & set(parts) and not path.name.startswith("_kernels."):
            found.add("/".join(parts[1:] if parts[:2] == ("runtime", "tritgguf") else ("tritgguf", *parts)))
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build("build_wheel", tmp_path_factory.mktemp("wheel"), PYTHON_ONLY)


def test_a_wheel_has_all_that_is_in_the_folders_but_the_c_sources(wheel: Path) -> None:
    files = files_of(wheel)
    assert files == files_of_the_packages(ROOT)
    assert {"tritgguf/py.typed", "tritgguf/converter/py.typed", "tritgguf/converter/ollama/renderings.json"} <= files
    assert {Path(name).parts[0] for name in files} == {"tritgguf"}


def test_a_wheel_knows_its_version_and_its_command(wheel: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    assert found.version == tritgguf.__version__
    assert {(entry.group, entry.name) for entry in found.entry_points} == {
        ("console_scripts", "tritgguf"),
        ("tritgguf.token_ids", "runtime"),
    }


def test_an_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("build_sdist", tmp_path / "sdist", {})
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (source,) = (tmp_path / "unpacked").iterdir()
    assert files_of(build("build_wheel", tmp_path / "wheel", PYTHON_ONLY, source=source)) == files_of(wheel)
    assert list((source / "converter" / "core" / "native").glob("*.c")) != []
    assert (source / "vendor" / "demo-model" / "model.safetensors").exists()


@pytest.mark.skipif(os.name != "posix" or not shutil.which("cmake"), reason="a PATH of links to CMake and make")
def test_without_a_compiler_there_is_a_wheel_for_any_machine(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("cmake", "ninja", "make", "uname"):
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    settings = {"build-dir": str(tmp_path / "build")}
    made = build("build_wheel", tmp_path / "wheel", settings, path=tmp_path / "bin")
    assert made.name.endswith("-py3-none-any.whl")
    assert files_of(made) == files_of(wheel)


IMPORT = """
import site, sys
site.addsitedir(sys.argv[1])
print(*sys.path[-1:])
import importlib
sys.path += sys.argv[2].split()  # where numpy is
for name in sys.argv[3:]:
    print(importlib.import_module(name).__file__)
"""


def test_an_editable_install_finds_the_files_of_the_checkout(tmp_path: Path) -> None:
    """Also those that were made, or became a folder, after it was installed; nothing else becomes importable."""
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    for name in ("converter", "runtime"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__", "_kernels.*"))
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, checkout)
    editable = build("build_editable", tmp_path / "wheel", PYTHON_ONLY, source=checkout)
    shutil.unpack_archive(editable, installed, "zip")
    (checkout / "converter" / "new").mkdir()
    (checkout / "converter" / "new" / "__init__.py").touch()
    (checkout / "converter" / "core" / "sizes").mkdir()
    (checkout / "converter" / "core" / "sizes.py").rename(checkout / "converter" / "core" / "sizes" / "__init__.py")
    names = ["tritgguf", "tritgguf.converter.new", "tritgguf.converter.core.sizes", "tritgguf.runtime.cli.command"]
    others = [path for path in sys.path if path.endswith("site-packages")]
    command = [sys.executable, "-S", "-c", IMPORT, str(installed), " ".join(others), *names]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    last_on_path, *files = run.stdout.split()
    assert last_on_path == str(installed)
    assert [str(Path(file).relative_to(checkout)) for file in files] == [
        "runtime/tritgguf/__init__.py",
        "converter/new/__init__.py",
        "converter/core/sizes/__init__.py",
        "runtime/cli/command.py",
    ]

"""Installing: the Makefile's stamps and vendor/install_runtime.py."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PREREQUISITES = ("pyproject.toml", "CMakeLists.txt", "vendor/llama-cpp-python.json", "vendor/install_runtime.py")


@pytest.fixture(scope="module")
def install_runtime():
    spec = importlib.util.spec_from_file_location("install_runtime", ROOT / "vendor" / "install_runtime.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(os.name != "posix" or not shutil.which("make"), reason="needs make and a shell")
def test_another_backend_is_installed_again(tmp_path):
    """A Python that does nothing but write down what it is asked, in a copy of the Makefile and what it looks at."""
    for name in ("Makefile", *PREREQUISITES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    python.chmod(0o755)

    def installs(*variables):
        (tmp_path / "asked").write_text("")
        command = ["make", "--silent", "demo", "PYTHON=true", *variables]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
        asked = (tmp_path / "asked").read_text().splitlines()
        assert any("tritgguf convert" in line for line in asked)
        return [line.removeprefix("vendor/install_runtime.py").strip() for line in asked if "install_runtime" in line]

    assert installs() == [""]
    assert installs() == []
    assert installs("BACKEND=cuda") == ["--backend cuda"]
    assert installs("BACKEND=cuda") == []
    assert installs("BACKEND=vulkan") == ["--backend vulkan"]
    assert installs("BACKEND=cuda") == ["--backend cuda"]
    assert installs() == [""]
    assert installs() == []


@pytest.mark.skipif(os.name != "posix", reason="looks for site-packages as a venv has it there")
def test_a_wheel_of_the_same_version_takes_the_place_of_another_backends(install_runtime, tmp_path, monkeypatch):
    pytest.importorskip("pip")
    venv.create(tmp_path / "venv", with_pip=False)
    python, (packages,) = tmp_path / "venv" / "bin" / "python", tmp_path.glob("venv/lib/python*/site-packages")
    for name, value in {"PYTHON": str(python), "NO_INDEX": "1", "DISABLE_PIP_VERSION_CHECK": "1"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)

    def runtime():
        return subprocess.run([python, "-m", "toy_runtime"], capture_output=True, text=True, timeout=60).stdout

    shutil.unpack_archive(toy_wheel(tmp_path / "cpu"), packages, "zip")
    assert runtime() == "cpu\n"
    install_runtime.install(toy_wheel(tmp_path / "cuda"))
    assert runtime() == "cuda\n"


def toy_wheel(folder):
    """A wheel whose module prints the folder's name."""
    folder.mkdir()
    wheel = folder / "toy_runtime-1.0-py3-none-any.whl"
    information = {
        "METADATA": "Metadata-Version: 2.1\nName: toy-runtime\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "toy_runtime.py,,\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_runtime.py", f"print({folder.name!r})\n")
        for name, text in information.items():
            archive.writestr(f"toy_runtime-1.0.dist-info/{name}", text)
    return wheel


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        ("  [1/187] /usr/bin/c++ -DGGML_BUILD -c ggml.c", (1, 187)),
        ("[187/187] Linking CXX shared library", (187, 187)),
        ("[ 12%] Building CXX object src/llama.cpp.o", (12, 100)),
        ("*** Building project with Ninja...", (0, 0)),
        ("warning: [3/4] isn't at the start", (0, 0)),
    ],
)
def test_how_far_a_build_is(install_runtime, line, steps):
    assert install_runtime.steps_done(line) == steps


def test_a_build_tells_how_far_it_is_and_what_failed(install_runtime, capfd):
    code = "for step in range(1, 41): print(f'[{step}/40] c++ {step}.cpp', flush=True)\nraise SystemExit({code})"
    install_runtime.run_with_progress([sys.executable, "-c", code.replace("{code}", "0")], dict(os.environ))
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(percent) for percent in range(5, 101, 5)]
    with pytest.raises(SystemExit) as stopped:
        install_runtime.run_with_progress([sys.executable, "-c", code.replace("{code}", "3")], dict(os.environ))
    assert "[40/40] c++ 40.cpp\nerror: building llama-cpp-python failed (exit code 3)" in str(stopped.value)


def test_a_build_within_the_build_does_not_count(install_runtime, capfd):
    """As that of Vulkan's shader compiler, which ends first."""
    lines = ["[1/40] making a folder", "[1/2] c++ shaders.cpp", "[2/2] linking", "[20/40] c++ vulkan.cpp"]
    code = "\n".join(f"print({line!r}, flush=True)" for line in lines)
    install_runtime.run_with_progress([sys.executable, "-c", code], dict(os.environ))
    assert [line.split()[0] for line in capfd.readouterr().out.splitlines()] == ["50"]


@pytest.mark.parametrize(
    ("system", "machine"), [("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "arm64"), ("Windows", "AMD64")]
)
def test_a_wheel_for_any_machine_is_not_built_for_this_one(install_runtime, system, machine, monkeypatch):
    monkeypatch.setattr(install_runtime.platform, "system", lambda: system)
    pin = json.loads(install_runtime.PIN.read_text())
    here, anywhere = (
        set(install_runtime.cmake_flags(pin, "cpu", machine, any_machine=any_machine)) for any_machine in (False, True)
    )
    assert "-DGGML_NATIVE=ON" in here - anywhere
    assert {"-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"} <= anywhere - here
    assert set(pin["cmake"]["common"]) <= here & anywhere
    # OpenMP's library comes with the wheel where auditwheel puts it there, that is on Linux.
    openmp = {"Linux": "ON", "Darwin": "OFF", "Windows": "OFF"}[system]
    assert [flag for flag in anywhere if "OPENMP" in flag] == [f"-DGGML_OPENMP={openmp}"]


def test_both_kinds_of_runtime_leave_amx_out(install_runtime):
    pin = json.loads(install_runtime.PIN.read_text())
    flags = install_runtime.cmake_flags(pin, "cpu", "x86_64")
    assert os.name == "nt" or [flag.count("-mno-amx-tile -mno-amx-int8") for flag in flags if "FLAGS=" in flag] == [
        1,
        1,
    ]
    variables = install_runtime.build_variables(pin, [], any_machine=True)
    assert "sapphirerapids" in variables["SKBUILD_WHEEL_EXCLUDE"]  # the only library of llama.cpp's with AMX

"""Nothing runs from the current folder, which may be a downloaded model's, not even a json.py that Python finds."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

# Modules that the program or the child imports, from Python, from what tritgguf requires, and from tritgguf's wings.
NAMES = (
    "json",
    "tempfile",
    "subprocess",
    "typing",
    "numpy",
    "gguf",
    "llama_cpp",
    "typer",
    "rich",
    "jinja2",
    "tokenizers",
)
ASK = """
import sys
from pathlib import Path
sys.path[:] = filter(None, sys.path)
from tritgguf.runtime.engine.token_ids_process import token_ids_process
with token_ids_process() as read:
    print(read(Path(sys.argv[1]), ["hi"]).found)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of modules that leave a mark when they run, and with a plugin."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('plugin ')\n")
    (tmp_path / "evil-1.dist-info").mkdir()
    (tmp_path / "evil-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (tmp_path / "evil-1.dist-info" / "entry_points.txt").write_text("[tritgguf.commands]\nevil = evil\n")
    return tmp_path


def run(folder: Path, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("path", [None, "", os.pathsep, f".{os.pathsep}"], ids=["unset", "empty", "empty parts", "dot"])
def test_the_child_that_computes_token_ids(folder: Path, random_model: Path, path: str | None) -> None:
    code = ASK if path is None else f"import os; os.environ['PYTHONPATH'] = {path!r}\n{ASK}"
    done = run(folder, sys.executable, "-c", code, random_model)
    assert (done.returncode, done.stdout) == (0, "[[104, 105]]\n"), done.stderr
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("command", [["-m", "tritgguf"], [Path(sysconfig.get_path("scripts"), "tritgguf")]])
def test_the_program(folder: Path, command: list[str | Path]) -> None:
    program = [sys.executable, *command]
    for arguments in (["--help"], ["--version"], ["inspect", "."]):
        done = run(folder, *program, *arguments)
        assert "Traceback" not in done.stderr
        assert not (folder / "ran").exists()
    assert done.returncode == 1
    assert "error: " in done.stderr

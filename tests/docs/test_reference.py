"""The tables of docs/reference.md: every environment variable that the sources read, and every exit code."""

from __future__ import annotations

import ast
import importlib.util
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies_environment

import pytest

from tests.command_line import run
from tests.docs.messages import known_constants, sources
from tests.paths import DOCS, ROOT
from tritgguf.runtime.cli import main as cli

PAGE = (DOCS / "reference.md").read_text(encoding="utf-8")
# Read by a library, so that the sources don't show it: the file in which the library does.
IN_LIBRARIES = {
    "HF_ASSETS_CACHE": "huggingface_hub.constants",
    "HF_HOME": "huggingface_hub.constants",
    "HF_HUB_CACHE": "huggingface_hub.constants",
    "HF_HUB_DISABLE_PROGRESS_BARS": "huggingface_hub.constants",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "huggingface_hub.constants",
    "HF_HUB_DISABLE_TELEMETRY": "huggingface_hub.constants",
    "HF_HUB_DOWNLOAD_TIMEOUT": "huggingface_hub.constants",
    "HF_HUB_OFFLINE": "huggingface_hub.constants",
    "NO_COLOR": "rich.console",
    "XDG_STATE_HOME": "platformdirs.unix",
}
BY_PYTHON = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"}


def test_every_variable_that_is_read_has_a_row() -> None:
    rows = re.findall(r"^\| (`[A-Z`, _]+`) \|", PAGE, re.MULTILINE)
    listed = [name for row in rows for name in re.findall("[A-Z_]+", row)]
    assert len(listed) == len(set(listed))
    trees = [*sources().values(), ast.parse((ROOT / "vendor" / "install_runtime.py").read_text(encoding="utf-8"))]
    read = {name for tree in trees for name in variables_read(tree)}
    assert set(listed) == read | set(IN_LIBRARIES) | BY_PYTHON


@pytest.mark.parametrize("name", IN_LIBRARIES)
def test_the_library_reads_it(name: str) -> None:
    found = importlib.util.find_spec(IN_LIBRARIES[name])
    assert found is not None
    assert found.origin is not None
    files = [Path(found.origin), *Path(found.origin).parent.glob("_xdg.py")]
    assert any(name in file.read_text(encoding="utf-8") for file in files)


def test_python_reads_these(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = {name for name in BY_PYTHON if name.endswith("_PROXY")}
    for name in proxies:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert {f"{kind.upper()}_PROXY" for kind in getproxies_environment()} >= proxies
    assert {ssl.get_default_verify_paths().openssl_cafile_env} == BY_PYTHON - proxies


def variables_read(tree: ast.Module) -> Iterator[str]:
    """Yield what a module asks the environment for: os.environ.get(X), os.environ[X], os.getenv(X), envvar=X."""
    known = known_constants(tree)
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(
            ("os.environ.", "os.getenv", "environment.")
        ):
            asked = node.args[:1]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("os.environ", "environment"):
            asked = [node.slice]
        elif isinstance(node, ast.keyword) and node.arg == "envvar":
            asked = [node.value]
        for name in asked:
            text = name.value if isinstance(name, ast.Constant) else known.get(ast.unparse(name), ast.unparse(name))
            if re.fullmatch("[A-Z][A-Z0-9_]+", str(text)):
                yield str(text)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert listed == [0, 1, 2, 129, cli.INTERRUPTED, 143]
    assert {128 + number for number in cli.STOPPING} <= {129, 143}  # Windows has no SIGHUP
    assert run(monkeypatch, "--help") == 0
    assert run(monkeypatch, "inspect", "no-such.gguf") == 1
    assert run(monkeypatch, "inspect", "--no-such-option") == 2
    assert "no-such.gguf" in capsys.readouterr().err

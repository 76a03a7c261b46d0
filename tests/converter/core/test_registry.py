"""The plugin registry: order, and one clear line for a plugin that can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import checkpoints, plugins
from tests.command_line import run_captured
from tritgguf.converter import TritggufError
from tritgguf.converter.core.registry import names, offered
from tritgguf.converter.quant.codec import codecs
from tritgguf.converter.quant.method import Method, methods

PACKAGE = "tritgguf.converter.quant.methods"
METHOD = """
from tritgguf.converter.quant.method import Method

METHOD = Method({name!r}, lambda rows, group_size: None)
"""


def install(folder: Path, module: str, name: str = "best", value: str = "someones_method") -> None:
    plugins.write_distribution(folder, {"tritgguf.methods": {name: value}}, {"someones_method": module})


@pytest.mark.parametrize("value", ["someones_method", "someones_method:METHOD"])
def test_an_entry_point_names_a_module_or_the_object_in_it(value: str, tmp_path: Path) -> None:
    install(tmp_path, METHOD.format(name="best"), value=value)
    with plugins.installed(tmp_path):
        found = ["absmean", "best", "four_levels", "mse"]
        assert names(PACKAGE) == found
        assert [method.name for method in offered(PACKAGE, "METHOD", Method)] == found
        assert "best" not in codecs()
    assert names(PACKAGE) == list(methods()) == ["absmean", "four_levels", "mse"]


@pytest.mark.parametrize(
    ("module", "value", "expected"),
    [
        ("import no_such_package", "someones_method", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "someones_method", "ZeroDivisionError: division by zero"),
        ("raise ValueError('one\\ntwo')", "someones_method", "ValueError: one two"),
        ("", "someones_method:METHOD", "AttributeError"),
        ("", "no_such_module", "No module named 'no_such_module'"),
        ("", "someones_method", "must define METHOD, a Method"),
        ("METHOD = 'best'", "someones_method:METHOD", "must define METHOD, a Method"),
    ],
)
def test_a_broken_plugin_is_named_in_one_line(module, value, expected, tmp_path: Path, monkeypatch, capsys) -> None:
    install(tmp_path, module, value=value)
    model = checkpoints.build("llama-gqa", tmp_path / "model")
    with plugins.installed(tmp_path):
        code, _, errors = run_captured(monkeypatch, capsys, "convert", model, "--dry-run")
    assert (code, errors.count("\n")) == (1, 1), errors
    assert f"the plugin best = {value} (tritgguf.methods, of someones-plugins 1.0)" in errors
    assert expected in errors


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    install(tmp_path, METHOD.format(name="mse"))
    with plugins.installed(tmp_path), pytest.raises(TritggufError, match=f"two plugins of {PACKAGE} are called mse"):
        methods()


def test_a_module_without_a_plugin_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    with plugins.file_in(PACKAGE, tmp_path / "empty.py"), pytest.raises(TritggufError, match=r"methods\.empty must"):
        methods()

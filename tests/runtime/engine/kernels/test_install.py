"""Whether our CPU kernels are put into llama.cpp, and what is said where they aren't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import backend, relu2
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels import routes, self_test, verdicts
from tritgguf.runtime.engine.kernels.install import install

LIBLLAMA = backend.native._lib
INSTALL = "from tritgguf.runtime.engine import backend; print(backend.cpu_kernels())"

built = pytest.mark.skipif(not compiled.PATH.exists(), reason="the kernels weren't built")


def child(code: str, cache: Path, **changes: str) -> str:
    """Return what Python code prints in a process with a cache folder of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITGGUF_CPU_KERNELS"}
    environment |= {"XDG_CACHE_HOME": str(cache), **changes}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("**/cpu-kernels/*.json"))


def instructions() -> str:
    return compiled.instructions(compiled.load())


# --- what was asked for ----------------------------------------------------------------------------------------------


def test_an_unknown_mode_is_one_line(monkeypatch):
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", "fast")
    with pytest.raises(
        EngineError, match=r"^TRITGGUF_CPU_KERNELS is 'fast'; expected one of auto, hook, accel, stock$"
    ):
        install(LIBLLAMA, backend.VERSION)


def test_llama_cpps_own_on_demand(monkeypatch):
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", "stock")
    found = install(LIBLLAMA, backend.VERSION)
    assert str(found) == "llama.cpp's own (TRITGGUF_CPU_KERNELS is stock)"


@pytest.mark.parametrize("mode", ["hook", "accel"])
def test_a_route_on_demand_that_is_not_open_is_an_error(mode, monkeypatch):
    monkeypatch.setenv("TRITGGUF_CPU_KERNELS", mode)
    with pytest.raises(
        EngineError, match=rf"{mode}, but that isn't possible here: tritgguf's are for .* this is 0\.3\.35"
    ):
        install(LIBLLAMA, "0.3.35")


# --- anything unexpected: llama.cpp's own ----------------------------------------------------------------------------


@pytest.fixture
def auto(monkeypatch):
    monkeypatch.delenv("TRITGGUF_CPU_KERNELS", raising=False)


@pytest.mark.usefixtures("auto")
def test_another_version_keeps_its_own():
    found = install(LIBLLAMA, "0.3.35")
    assert (found.route, found.instructions) == ("stock", "")
    assert found.reason == "tritgguf's are for llama-cpp-python 0.3.36, this is 0.3.35"


@pytest.fixture
def fresh():
    """The library is looked for again, before the test and after it."""
    compiled.load.cache_clear()
    yield
    compiled.load.cache_clear()


@pytest.mark.usefixtures("auto", "fresh")
def test_without_the_library_it_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "PATH", tmp_path / "none.so")
    assert install(LIBLLAMA, backend.VERSION).reason.startswith("tritgguf's weren't built")
    (tmp_path / "none.so").write_bytes(b"no library")
    assert install(LIBLLAMA, backend.VERSION).reason.startswith("tritgguf's can't be loaded: ")


@built
@pytest.mark.usefixtures("auto", "fresh")
def test_a_library_of_other_sources_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "hook.cpp").write_text("int changed;")
    monkeypatch.setattr(compiled, "SOURCES", tmp_path)
    assert install(LIBLLAMA, backend.VERSION).reason == "tritgguf's are of another source: build them again"
    monkeypatch.setattr(compiled, "SOURCES", tmp_path / "none, as in a wheel")
    assert compiled.load()


@built
def test_another_structure_keeps_its_own(monkeypatch):
    monkeypatch.setattr(relu2, "_OBJECT_BYTES", 48)
    assert self_test.why_not(LIBLLAMA, "hook") == "llama.cpp's structures aren't the known ones"


@built
def test_another_virtual_table_is_not_touched(monkeypatch):
    monkeypatch.setattr(routes, "_TABLE_HEADER_BYTES", 24)
    refused = routes.install_hook(compiled.load(), routes.GgmlFunctions(LIBLLAMA))
    assert refused == "this llama.cpp has no extra buffer type to hook into"


@built
@pytest.mark.parametrize(
    ("code", "why", "lasting"),
    [
        ("import os; os.abort()", "the self-test crashed (signal 6)", True),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "the self-test crashed (signal 15)", False),
        ("print('{')", "the self-test failed: no reason", False),
        ("import no_such_module", "the self-test failed: ModuleNotFoundError: No module named 'no_such_module'", False),
    ],
)
def test_a_self_test_that_fails(code, why, lasting, monkeypatch):
    monkeypatch.setattr(self_test, "COMMAND", (sys.executable, "-c", code))
    assert self_test.run(LIBLLAMA._name, "hook") == self_test.Verdict(why, lasting)


@built
def test_products_that_differ_are_not_used(tmp_path):
    broken = "from tritgguf.runtime.engine.kernels import self_test; self_test.MOST_DIFFERENCE = 0.0; self_test.main()"
    code = (
        "import sys; from tritgguf.runtime.engine.kernels import self_test; "
        f"self_test.COMMAND = (sys.executable, '-c', {broken!r}); {INSTALL}"
    )
    found = child(code, tmp_path)
    assert found.startswith("llama.cpp's own (no hook: ")
    assert found.count("tokens differ from llama.cpp's") == 2
    assert "; no accel: " in found
    assert [json.loads(path.read_text()).keys() for path in kept(tmp_path)] == [{"why_not"}] * 2


# --- once per build and processor ------------------------------------------------------------------------------------


@built
def test_a_verdict_is_kept_and_a_damaged_one_made_again(tmp_path):
    hook = f"tritgguf's for {instructions()}, by hook (the self-test passed)"
    assert child(INSTALL, tmp_path) == hook
    (path,) = kept(tmp_path)
    assert json.loads(path.read_text()) == {"why_not": None}
    for damaged in (b"", b"{", b"[]", b'{"why_not": 3}', b"\xff\xfe"):
        path.write_bytes(damaged)
        assert verdicts.read(path) is None
    assert child(INSTALL, tmp_path) == hook
    assert json.loads(path.read_text()) == {"why_not": None}
    path.write_text('{"why_not": "told so"}')
    accel = f"tritgguf's for {instructions()}, by accel (no hook: told so; the self-test passed)"
    assert child(INSTALL, tmp_path) == accel
    assert len(kept(tmp_path)) == 2


@built
def test_where_nothing_can_be_kept_the_kernels_run_all_the_same(tmp_path):
    (tmp_path / "file").write_text("")
    assert ", by hook (" in child(INSTALL, tmp_path / "file")

"""`tritgguf doctor` on the real runtime, whose products a library of ours breaks where a test wants them broken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import checkpoints
from tests.ollama_server import free_port
from tests.paths import ROOT
from tritgguf.converter import convert
from tritgguf.converter.quant.codec import codecs
from tritgguf.runtime.engine import decode_speed
from tritgguf.runtime.engine.product_verdicts import Findings, ProductVerdict, read
from tritgguf.runtime.measure.doctor import trial

# llama.cpp calls these through the dynamic linker, which takes the functions of a preloaded library instead.
CRASHES = "void ggml_vec_dot_tq2_0_q8_K(void) { __builtin_trap(); }\n"
WRONG = "void ggml_vec_dot_q2_0_q8_0(int n, float * s) { (void) n; *s = 1; }\n"
LOADING = "void ggml_time_init(void) { __builtin_trap(); }\n"

linux_with_compiler = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux, for LD_PRELOAD, and a C compiler"
)


def run(cache: Path, *arguments: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `tritgguf ARGUMENTS` with a cache folder of its own, llama.cpp's own kernels, and no network."""
    closed = f"http://127.0.0.1:{free_port()}"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TRITGGUF_CPU_KERNELS": "stock"}
    environment |= {"HF_ENDPOINT": closed, "OLLAMA_HOST": closed, **changes}
    command = [sys.executable, "-m", "tritgguf", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {product["type"]: product["state"] for product in found["findings"]["products"]}


def kept(cache: Path) -> Path:
    (path,) = (cache / "tritgguf" / "doctor").glob("*.json")
    return path


def library(folder: Path, code: str) -> str:
    (folder / "fault.c").write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "fault.so", folder / "fault.c"], check=True)
    return str(folder / "fault.so")


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The cache folder and the report of a doctor's first run."""
    cache = tmp_path_factory.mktemp("healthy")
    done = run(cache, "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return cache, report(done)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same with a llama.cpp whose TQ2_0 products crash and whose Q2_0 products are wrong."""
    cache = tmp_path_factory.mktemp("faulty")
    return cache, run(cache, "doctor", "--json", LD_PRELOAD=library(cache, CRASHES + WRONG))


@pytest.fixture(scope="module")
def tq2_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return convert(checkpoints.build("llama-tied", folder / "model"), folder / "tq2_0.gguf", "tq2_0", check=False).out


def test_the_real_runtime_multiplies_every_type_right(healthy) -> None:
    _, found = healthy
    assert set(states(found)) == set(codecs())
    assert set(states(found).values()) <= {"fast", "slow"}
    assert all(rate > 0 for product in found["findings"]["products"] for rate in product["rates"])
    assert found["good"]
    assert found["problems"] == []
    assert found["findings"]["cpu_kernels"] == "llama.cpp's own (TRITGGUF_CPU_KERNELS is stock)"
    assert found["versions"]["llama-cpp-python"] == "0.3.36"
    assert found["instructions"]["used"]
    assert found["memory_bytes"] > 0
    assert not found["ollama"]["found"]
    assert not found["hub"]["found"]


def test_it_is_tested_once(healthy) -> None:
    cache, found = healthy
    done = run(cache, "doctor", "-v")
    assert done.returncode == 0
    assert "testing" not in done.stderr
    assert f"Compared with numpy on {found['findings']['tested'].replace('T', ' ')[:16]}" in done.stdout
    assert "tq2_0" in done.stdout


def test_a_damaged_cache_is_made_again(healthy) -> None:
    cache, found = healthy
    path, good = kept(cache), kept(cache).read_text()
    product = json.loads(good)["products"][0]
    for damaged in (
        b"",
        b"{",
        b"[]",
        b'{"tested": "today"}',
        b"\xff\xfe",
        json.dumps({**json.loads(good), "problem": 3}).encode(),
        json.dumps({**json.loads(good), "products": [{**product, "state": "fine"}]}).encode(),
        json.dumps({**json.loads(good), "products": [{**product, "rates": [1]}]}).encode(),
    ):
        path.write_bytes(damaged)
        assert read(path) is None, damaged
    done = run(cache, "doctor", "-v")
    assert done.returncode == 0
    assert done.stderr.count("testing ") == len(codecs())
    assert {product.type for product in read(path).products} == set(states(found))


@linux_with_compiler
def test_products_that_crash_or_are_wrong_are_named_with_the_remedy(faulty) -> None:
    _, done = faulty
    found = report(done)
    assert done.returncode == 1
    assert {kind for kind, state in states(found).items() if state == "crashes"} == {"tq2_0"}
    assert {kind for kind, state in states(found).items() if state == "wrong"} == {"q2_0"}
    crashes, wrong = sorted(found["problems"], key=lambda line: "wrong" in line)
    assert crashes.startswith("tq2_0 products on CPU crash (SIG")
    assert "; install llama-cpp-python again on this computer" in crashes
    assert wrong.startswith("q2_0 products on CPU are wrong (relative difference ")
    assert done.stderr.startswith("error: 2 things are broken here: ")
    assert done.stderr.count("\n") == 1


@linux_with_compiler
def test_chat_refuses_what_is_known_to_crash(faulty, tq2_0: Path) -> None:
    cache, _ = faulty
    done = run(cache, "chat", tq2_0, "--prompt", "Hello", "--max-tokens", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tq2_0}: tq2_0 products on CPU crash (SIG")
    assert done.stderr.endswith("; `tritgguf doctor --again` tests again\n")
    assert done.stderr.count("\n") == 1


@linux_with_compiler
@pytest.mark.parametrize("command", [("eval", "--chunks", "1"), ("bench", "--repeat", "1"), ("serve", "--port", "0")])
def test_so_does_whatever_else_loads_a_model(command: tuple[str, ...], faulty, tq2_0: Path) -> None:
    cache, _ = faulty
    done = run(cache, *command, tq2_0)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tq2_0}: tq2_0 products on CPU crash (SIG" in done.stderr


def test_chat_runs_where_nothing_is_wrong(healthy, tq2_0: Path) -> None:
    cache, _ = healthy
    assert run(cache, "chat", tq2_0, "--prompt", "Hello", "--max-tokens", "1").returncode == 0


@linux_with_compiler
def test_a_llama_cpp_that_crashes_when_it_is_loaded(tmp_path: Path, tq2_0: Path) -> None:
    preload = library(tmp_path, LOADING)
    done = run(tmp_path, "doctor", LD_PRELOAD=preload)
    assert done.returncode == 1
    assert "llama.cpp crashes when it is loaded (SIG" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run(tmp_path, "chat", tq2_0, "--prompt", "Hello")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: llama.cpp crashes when it is loaded (SIG")
    assert done.stderr.endswith("; `tritgguf doctor --again` tests again\n")


def test_without_llama_cpp_the_rest_is_told(tmp_path: Path) -> None:
    done = run(tmp_path, "doctor", LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.returncode == 1
    assert "llama-cpp-python can't be loaded" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "versions:" in done.stdout
    assert not list(tmp_path.glob("tritgguf/doctor/*"))


def test_a_child_that_ends_for_no_reason_is_one_line(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", "raise SystemExit('no reason')"))
    found = trial.findings("0.3.36")
    assert found.problem == "the test of llama.cpp's products failed: no reason"
    assert not list(tmp_path.glob("tritgguf/doctor/*"))


def test_a_llama_cpp_that_hangs_when_it_is_loaded(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", "import threading; threading.Event().wait()"))
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    problem = "llama.cpp wasn't loaded within 0.1 s; run tritgguf doctor again when nothing else runs, or install llama"
    assert str(trial.findings("0.3.36").problem).startswith(problem)
    assert not list(tmp_path.glob("tritgguf/doctor/*"))


BUILD = {
    "event": "build", "system_info": "", "cpu_kernels": "", "amx_is_broken": False, "n_threads": 1,
    "devices": [{"name": "Vulkan0", "description": "a GPU", "kind": 1, "total_bytes": 1}],
}  # fmt: skip
HANGS_AT_Q2_K = f"""
import json, sys, threading

def say(**event):
    print(json.dumps(event), flush=True)

say(**{BUILD})
product = {{"device": "Vulkan0", "type": "q2_0" if "Vulkan0/q2_k" in sys.argv else "q2_k", "own_kernels": False}}
say(event="start", **product)
if product["type"] == "q2_k":
    threading.Event().wait()
say(event="result", **product, rates=[1, 1], wrong=None)
say(event="end")
"""


def test_a_product_that_hangs_is_named_and_tested_again(monkeypatch, tmp_path: Path) -> None:
    class AtQ2K(trial._Limit):
        """Passed where the first child begins with Q2_K, however long that took."""

        n_starts = 0

        def _start(self) -> None:
            super()._start()
            AtQ2K.n_starts += 1
            if AtQ2K.n_starts == 3:
                self._end()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", HANGS_AT_Q2_K))
    monkeypatch.setattr(trial, "_Limit", AtQ2K)
    found = trial.findings("0.3.36")
    assert [(product.type, product.state) for product in found.products] == [("q2_k", "unfinished"), ("q2_0", "fast")]
    assert [fault.line for fault in found.faults] == [
        "q2_k products on Vulkan0 took longer than 300 s; run tritgguf doctor again when nothing else runs, or update "
        "the GPU's driver, or use --gpu-layers 0"
    ]
    assert not list(tmp_path.glob("tritgguf/doctor/*"))


def test_again_forgets_how_fast_types_are_too(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", ""))
    monkeypatch.setattr(decode_speed, "COMMAND", (sys.executable, "-c", "print('{\"tq2_0\": 2e-11}')"))
    for again, n_kept in ((False, 1), (True, 0)):
        decode_speed.seconds_per_weight()
        trial.findings("0.3.36", again=again)
        assert len(list(tmp_path.glob("tritgguf/decode-speed/*"))) == n_kept


def test_slow_is_far_behind_f16() -> None:
    products = [
        ProductVerdict("CPU", "cpu", "f16", "fast", (10.0, 40.0)),
        ProductVerdict("CPU", "cpu", "q2_0", "fast", (2.0, 1.9)),
        ProductVerdict("CPU", "cpu", "nvfp4", "fast", (12.0, 12.0)),
        ProductVerdict("CUDA0", "gpu", "q2_0", "fast", (2.0, 1.9)),
        ProductVerdict("CPU", "cpu", "q4_0", "wrong", (0.1, 0.1)),
    ]
    assert [product.state for product in trial.judged(products)] == ["fast", "slow", "fast", "fast", "wrong"]
    assert Findings("today", None, products=tuple(products)).faults == (products[-1],)


@pytest.mark.parametrize(
    ("code", "crash"),
    [
        (0, (None, True)),
        (1, (None, False)),
        (-4, ("SIGILL", True)),
        (-9, ("SIGKILL", False)),
        (0xC000001D, ("illegal instruction", True)),
        (-1073741819, ("access violation", True)),
    ],
)
def test_what_an_exit_code_means(code: int, crash: tuple[str | None, bool]) -> None:
    assert trial._crash(code) == crash

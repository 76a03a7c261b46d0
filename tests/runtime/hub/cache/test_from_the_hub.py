"""`run` and `pull` of models on a hub: fetched once, converted once, and then nobody is asked any more."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.runtime.hub.cache.refusal import assert_one_error_line
from tests.runtime.hub.conftest import demo_files
from tests.runtime.hub.hub_server import Fault, HubServer, Repository
from tritgguf.converter import convert
from tritgguf.converter.gguf_io.reader import read_gguf
from tritgguf.converter.model.hub_source import recorded_source
from tritgguf.runtime.hub.cache import Cache, Entry

Say = Callable[..., tuple[int, str, str]]
ASK = ("--prompt", "Who are you?", "--temperature", "0", "--threads", "1")
WEIGHTS = r"^/[^/]+/[^/]+/[0-9a-f]{40}/model\.safetensors$"  # on the CDN
REACHED = 2_000_000  # bytes


@pytest.fixture
def repository(hub: HubServer, request: pytest.FixtureRequest) -> Repository:
    """The demo model in a repository of this test's own."""
    return hub.add(f"cache-tests/{request.node.name.partition('[')[0]}"[:90], demo_files())


def only(cache: Cache) -> Entry:
    (entry,) = cache.entries()
    return entry


def downloads(name: str) -> Path:
    """Where huggingface_hub keeps a repository."""
    return Path(os.environ["HF_HOME"]) / "hub" / f"models--{name.replace('/', '--')}"


def test_a_name_becomes_a_conversation(say: Say, cache: Cache, hub: HubServer, repository: Repository) -> None:
    code, answer, errors = say("run", repository.name, *ASK)
    entry = only(cache)
    size = f"{entry.record.n_bytes / 1e6:.2f} MB"
    assert (code, errors) == (0, f"{repository.name}: tq1_0, {size}, exact\n")
    assert answer.startswith("I'm a tiny language model.")
    recorded = recorded_source(read_gguf(entry.paths[0]).metadata)
    assert recorded is not None
    assert (recorded.repo, recorded.commit) == (repository.name, repository.refs["main"])
    assert hub.sent(WEIGHTS) == len(repository.commits[repository.refs["main"]]["model.safetensors"])
    shutil.rmtree(downloads(repository.name))  # not needed any more
    hub.clear()
    code, again, errors = say("run", f"hf.co/{repository.name}", *ASK)
    assert (code, again, errors) == (0, answer, "")
    (told,) = json.loads(say("list", "--json")[1])
    assert told["name"] == repository.name
    assert told["source"] == {"kind": "hub", "place": repository.name, "commit": repository.refs["main"]}
    assert told["used"] is not None
    assert repository.refs["main"][:12] in say("list")[1]
    assert say("show", repository.name.split("/")[1], "--check")[0] == 0
    assert hub.requests == []


def test_pull_notices_a_changed_revision(say: Say, cache: Cache, hub: HubServer, repository: Repository) -> None:
    assert say("pull", repository.name)[0] == 0
    before, first = only(cache), repository.refs["main"]
    hub.clear()
    assert say("pull", repository.name)[1].endswith(", exact; up to date\n")
    assert len(hub.requests) == 1
    files = demo_files()
    config = {**json.loads(files["generation_config.json"]), "top_k": 7}
    newest = repository.commit({**files, "generation_config.json": json.dumps(config).encode()})
    hub.clear()
    code, _, errors = say("run", repository.name, *ASK)
    assert (code, errors, hub.requests) == (0, "", [])
    assert only(cache).record == before.record
    code, said, errors = say("pull", repository.name)
    assert (code, errors) == (0, "")
    assert said.endswith(", exact\n")
    assert only(cache).record.origin.commit == newest
    assert hub.sent(WEIGHTS) == 0
    assert not before.paths[0].exists()
    code, said, errors = say("pull", repository.name, "--revision", first)
    assert (code, errors) == (0, "")
    assert said.startswith(f"{repository.name}@{first}: tq1_0, ")
    assert {entry.record.origin.commit for entry in cache.entries()} == {first, newest}


def test_a_short_name_of_the_catalogue(say: Say, cache: Cache, hub: HubServer) -> None:
    hub.add("tiiuae/Falcon3-1B-Instruct-1.58bit", demo_files())
    code, said, errors = say("pull", "falcon3-1b")
    assert (code, errors) == (0, "")
    assert said.startswith("tiiuae/Falcon3-1B-Instruct-1.58bit: tq1_0, ")
    assert json.loads(say("show", "Falcon3-1b", "--json")[1])[0]["type"] == "tq1_0"
    assert re.search(r"MB freed; `hf cache rm model/tiiuae/\S+` frees the 3.9. MB of its", say("rm", "falcon3-1b")[1])
    assert "not in the cache; `tritgguf run falcon3-1b` gets it" in say("show", "falcon3-1b")[1]


def test_a_gguf_file_stays_in_the_hubs_cache(say: Say, cache: Cache, hub: HubServer, tmp_path: Path) -> None:
    file = convert(ROOT / "vendor" / "demo-model", tmp_path / "demo-TQ2_0.gguf", "tq2_0", check=False).out
    hub.add("cache-tests/gguf", {file.name: file.read_bytes()})
    code, answer, errors = say("run", "cache-tests/gguf", *ASK)
    assert code == 0, errors
    assert answer
    entry = only(cache)
    assert list(cache.folder.rglob("*.gguf")) == []
    assert entry.paths[0].is_relative_to(downloads("cache-tests/gguf"))
    (told,) = json.loads(say("show", "cache-tests/gguf", "--json")[1])
    assert told["files"][0]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told["source"]["file"] == file.name
    assert told["converted"] is False
    assert say("cp", "cache-tests/gguf", tmp_path / "copy.gguf")[0] == 0
    assert (tmp_path / "copy.gguf").read_bytes() == file.read_bytes()
    hub.clear()
    assert say("run", "cache-tests/gguf", *ASK) == (0, answer, "")
    assert hub.requests == []
    assert say("rm", "cache-tests/gguf")[1].startswith(
        f"Removed cache-tests/gguf (tq2_0): nothing freed, {entry.paths[0]} "
    )
    assert entry.paths[0].exists()


def test_what_the_hub_refuses_leaves_nothing(say: Say, cache: Cache, hub: HubServer) -> None:
    hub.add("cache-tests/gated", demo_files(), gated=True)
    for name, words in (("cache-tests/gated", "is gated"), ("cache-tests/none", "has no model cache-tests/none")):
        code, said, errors = say("run", name, *ASK)
        assert_one_error_line(code, said, errors)
        assert words in errors
    assert cache.entries() == []


def largest_part(name: str) -> int:
    """The bytes of the largest file that is being fetched."""
    return max((part.stat().st_size for part in downloads(name).glob("blobs/*.incomplete")), default=0)


def start(point: str, action: str, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.runtime.hub.cache.stopped", point, action, "pull", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.usefixtures("unmeasured")
def test_killed_as_it_fetches_and_again_as_it_converts(
    say: Say, cache: Cache, hub: HubServer, repository: Repository
) -> None:
    fault = Fault(WEIGHTS, after=REACHED, stalls=True)
    hub.faults.append(fault)
    fetching = start("nowhere", "", repository.name)
    assert fault.reached.wait(120)
    while largest_part(repository.name) < REACHED:
        assert fetching.poll() is None
        fault.release.wait(0.01)
    fetching.kill()
    assert fetching.communicate(timeout=120) == ("", "")
    fault.release.set()
    hub.clear()
    converting = start("writing", "SIGKILL", repository.name)
    assert converting.communicate(timeout=120) == ("", "")
    assert converting.returncode == -signal.SIGKILL
    size = len(repository.commits[repository.refs["main"]]["model.safetensors"])
    assert hub.sent(WEIGHTS) == size - REACHED
    hub.clear()
    code, said, errors = say("pull", repository.name)
    assert (code, errors) == (0, "")
    assert said.endswith(", exact\n")
    assert hub.sent(r"/resolve/|/resolve-cache/|model\.safetensors") == 0

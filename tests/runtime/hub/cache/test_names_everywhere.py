"""`serve`, `bench` and `eval` take the names that `run` takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.runtime.hub.cache.refusal import assert_one_error_line
from tests.runtime.hub.conftest import demo_files
from tests.runtime.hub.hub_server import HubServer
from tests.served import serve
from tritgguf.runtime.hub.cache import Cache

Say = Callable[..., tuple[int, str, str]]
BENCH = ("--prompt-tokens", "4", "--generate", "0", "--threads", "1", "--repeat", "1", "--json")
EVAL = ("--ctx", "16", "--chunks", "1", "--threads", "1", "--json")


def served_names(*models: str) -> list[str]:
    with serve(*models, "--threads", "1", "--slots", "1") as server:
        return [model["id"] for model in json.loads(server.get("/v1/models"))["data"]]


def test_serve_converts_a_model_on_its_first_use(say: Say, cache: Cache, hub: HubServer) -> None:
    hub.add("tiiuae/Falcon3-1B-Instruct-1.58bit", demo_files())
    assert served_names("tiiuae/Falcon3-1B-Instruct-1.58bit") == ["Falcon3-1B-Instruct-1.58bit"]
    (entry,) = cache.entries()
    assert entry.used is not None
    hub.clear()
    assert served_names("falcon3-1b") == ["falcon3-1b"]
    code, printed, errors = say("bench", "falcon3-1b", *BENCH)
    assert code == 0, errors
    assert json.loads(printed)["runs"][0]["path"] == str(entry.paths[0])
    assert (cache.entries(), hub.requests) == ([entry], [])


def test_eval_compares_a_folder_with_a_file_on_the_hub(
    say: Say, cache: Cache, hub: HubServer, had: Path, demo_gguf: Path
) -> None:
    hub.add("cache-tests/eval-gguf", {"demo-TQ2_0.gguf": demo_gguf.read_bytes(), "demo-F16.gguf": b"GGUF" * 5000})
    code, printed, errors = say("eval", had, "--against", "cache-tests/eval-gguf:TQ2_0", *EVAL)
    assert code == 0, errors
    found = json.loads(printed)
    assert found["base"]["path"].endswith("/demo-TQ2_0.gguf")
    assert found["files"][0]["path"].startswith(str(cache.folder))
    assert found["files"][0]["same_top1"] == 1.0
    assert not hub.sent("F16")


def test_a_file_is_taken_as_it_is(say: Say, cache: Cache, demo_gguf: Path) -> None:
    code, printed, errors = say("bench", demo_gguf, *BENCH)
    assert code == 0, errors
    assert json.loads(printed)["runs"][0]["path"] == str(demo_gguf)
    assert cache.entries() == []


def test_names_of_nothing(say: Say) -> None:
    for command in (("serve",), ("bench",), ("eval",), ("run", "--prompt", "Hello"), ("show",)):
        for name in ("none", "~no-such-user/model", "x" * 300, "x/" * 3000):
            assert_one_error_line(*say(*command, name))

"""Fetch models from a hub on this machine with the real client of huggingface_hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.runtime.hub.conftest import DEMO
from tests.runtime.hub.hub_server import Fault, HubServer, Repository
from tritgguf.converter.errors import HubError
from tritgguf.runtime.hub.download import commit_of, download, in_cache
from tritgguf.runtime.hub.names import ModelName
from tritgguf.runtime.hub.transfer import TRIES

NEEDED = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
          "README.md", "NOTICE"}  # fmt: skip
WEIGHTS = r"^/tests/[^/]+/[0-9a-f]{40}/model\.safetensors$"  # on the CDN


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_only_the_needed_files_come_and_each_once(hub: HubServer, demo: Repository) -> None:
    progress: list[tuple[str, int, int]] = []
    found = download(ModelName(demo.name), on_progress=lambda *figures: progress.append(figures))
    assert found.commit == demo.refs["main"]
    assert found.repo == demo.name
    assert contents(found.path) == {name: digest for name, digest in contents(DEMO).items() if name in NEEDED}
    total = sum((DEMO / name).stat().st_size for name in NEEDED)
    assert progress[-1] == ("downloading", total, total)
    assert hub.sent("/resolve-cache/|^/tests/") == total
    hub.clear()
    assert download(ModelName(demo.name)) == found
    assert [request.path for request in hub.requests] == [f"/api/models/{demo.name}"]
    hub.clear()
    assert download(ModelName(demo.name, found.commit)) == found
    assert not hub.requests


def test_the_client_says_nothing_of_this_machine(hub: HubServer, demo: Repository) -> None:
    download(ModelName(demo.name))
    assert not hub.asked("harness")


def test_the_token_goes_to_the_hub_alone(hub: HubServer, demo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    demo.private = demo.gated = True
    download(ModelName(demo.name))
    assert {(request.place, request.token) for request in hub.requests} == {("hub", "hf_good"), ("cdn", None)}


def test_a_broken_connection_goes_on_where_it_broke(hub: HubServer, demo: Repository) -> None:
    hub.faults += [Fault(WEIGHTS, after=1_000_000), Fault(WEIGHTS, after=500_000), Fault(WEIGHTS, status=503)]
    found = download(ModelName(demo.name))
    assert (found.path / "model.safetensors").read_bytes() == (DEMO / "model.safetensors").read_bytes()
    assert [request.range for request in hub.asked(WEIGHTS)] == [
        None,
        "bytes=1000000-",
        "bytes=1500000-",
        "bytes=1500000-",
    ]
    assert hub.sent(WEIGHTS) - 2 == (DEMO / "model.safetensors").stat().st_size  # the 503 has the body {}


def test_a_server_that_ignores_ranges_starts_again(hub: HubServer, demo: Repository) -> None:
    hub.faults += [Fault(WEIGHTS, after=100_000)]
    hub.faults += [Fault(WEIGHTS, ignores_range=True)]
    progress: list[tuple[str, int, int]] = []
    found = download(ModelName(demo.name), on_progress=lambda *figures: progress.append(figures))
    assert contents(found.path)["model.safetensors"] == contents(DEMO)["model.safetensors"]
    assert progress[-1][1] == progress[-1][2]


def test_a_server_that_stalls_is_asked_again(hub: HubServer, demo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.faults += [Fault(WEIGHTS, after=300_000, stalls=True)]
    found = download(ModelName(demo.name))
    assert contents(found.path)["model.safetensors"] == contents(DEMO)["model.safetensors"]
    assert hub.asked(WEIGHTS)[-1].range is not None
    for fault in hub.faults:
        fault.release.set()


def test_a_busy_server_is_asked_again(hub: HubServer, demo: Repository) -> None:
    hub.faults += [Fault("config", status=429, headers={"Retry-After": "0"}, times=2), Fault(WEIGHTS, status=500)]
    assert contents(download(ModelName(demo.name)).path).keys() == NEEDED


def test_bytes_that_the_hub_did_not_promise_are_refused(hub: HubServer, demo: Repository) -> None:
    hub.faults += [Fault(WEIGHTS, spoils=True)]
    with pytest.raises(HubError, match=r"model\.safetensors: the bytes that came are others than the hub promised"):
        download(ModelName(demo.name))
    assert contents(download(ModelName(demo.name)).path)["model.safetensors"] == contents(DEMO)["model.safetensors"]


def test_more_bytes_than_promised_are_refused(hub: HubServer, demo: Repository) -> None:
    demo.listed["model.safetensors"] = 1000
    with pytest.raises(HubError, match=r"model\.safetensors: the bytes that came are more than the hub promised"):
        download(ModelName(demo.name))


def test_fewer_bytes_than_promised_are_refused(hub: HubServer, demo: Repository) -> None:
    demo.listed["model.safetensors"] = 4_000_000
    with pytest.raises(HubError, match=r"model\.safetensors: the bytes that came are fewer than the hub promised"):
        download(ModelName(demo.name))


def test_a_connection_that_breaks_again_and_again_is_given_up(hub: HubServer, demo: Repository) -> None:
    """Although each time bytes come, since the server sends the file from its start."""
    hub.faults += [Fault(WEIGHTS, after=50_000, ignores_range=True, times=50)]
    with pytest.raises(HubError, match=r"can't be reached"):
        download(ModelName(demo.name))
    assert len(hub.asked(WEIGHTS)) == TRIES


def test_files_outside_the_folder_are_left_out(hub: HubServer) -> None:
    hub.add("tests/outside", {"../a.gguf": b"GGUF", "x/../../b.gguf": b"GGUF", "c\\d.gguf": b"GGUF", "e.gguf": b"GGUF"})
    assert download(ModelName("tests/outside")).path.name == "e.gguf"


def test_a_changed_revision_is_fetched_and_the_old_one_stays(hub: HubServer, demo: Repository) -> None:
    old = download(ModelName(demo.name))
    changed = {**demo.commits[old.commit], "generation_config.json": b'{"temperature": 0.25}'}
    demo.commit(changed, "main")
    demo.commit(changed, "v2")
    hub.clear()
    new = download(ModelName(demo.name))
    assert new.commit == demo.refs["main"] != old.commit
    assert hub.sent("/resolve-cache/|^/tests/") == len(changed["generation_config.json"])
    assert download(ModelName(demo.name, old.commit)) == old
    assert download(ModelName(demo.name, "v2")).commit == demo.refs["v2"]
    assert commit_of(ModelName(demo.name, "v2")) == demo.refs["v2"]


def test_weights_in_shards(hub: HubServer, request: pytest.FixtureRequest) -> None:
    shard, other = bytes(30_000), bytes(20_000)
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    files = {
        "config.json": b"{}",
        "model.safetensors.index.json": index.encode(),
        "consolidated.safetensors": bytes(50_000),
    }
    files |= {"model-00001-of-00002.safetensors": shard, "model-00002-of-00002.safetensors": other}
    found = download(ModelName(hub.add("tests/shards", files).name))
    assert contents(found.path).keys() == files.keys() - {"consolidated.safetensors"}


def test_a_split_gguf_file_in_a_folder(hub: HubServer) -> None:
    parts = [f"q2/m-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.add("tests/split", {**{part: part.encode() for part in parts}, "other.gguf": b"GGUF"})
    found = download(ModelName("tests/split", None, "q2"))
    assert found.path.name == "m-00001-of-00002.gguf"
    assert [path.name for path in sorted(found.path.parent.iterdir())] == [Path(part).name for part in parts]


def test_without_a_network_what_is_here_will_do(
    hub: HubServer, demo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ModelName(demo.name)
    assert in_cache(name) is None
    found = download(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert download(name) == found
    assert commit_of(name) == found.commit
    assert in_cache(name) == found
    (found.path / "tokenizer.json").unlink()
    with pytest.raises(HubError, match=r"isn't complete in .*, and HF_HUB_OFFLINE forbids to fetch it: unset"):
        download(name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub.faults += [Fault("/api/models", status=503)]
    with pytest.raises(HubError, match=r"has trouble \(status 503\): try again later"):
        download(name)
    hub.clear()
    assert download(name) == found
    assert not hub.sent(WEIGHTS)


def test_a_model_that_another_program_fetched(
    hub: HubServer, demo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    for name in NEEDED:
        hf_hub_download(demo.name, name)
    hub.clear()
    assert contents(download(ModelName(demo.name)).path).keys() == NEEDED
    assert not hub.sent(WEIGHTS)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert contents(download(ModelName(demo.name)).path).keys() == NEEDED

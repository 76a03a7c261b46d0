"""What goes wrong on the way to the hub is told in one line that says what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from tests import hub_endpoint
from tests.command_line import run_captured
from tests.runtime.hub.hub_server import Fault, HubServer, Repository
from tritgguf.converter.errors import HubError
from tritgguf.runtime.cli.main import main
from tritgguf.runtime.hub import client

SITE = hub_endpoint.ENDPOINT


def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that fails; return its one line, which has no token in it."""
    code, out, err = run_captured(monkeypatch, capsys, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1), err
    assert "hf_" not in err.replace("hf_token", "")
    return err.strip().removeprefix("error: ")


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Convert what is named, and return the error."""
    return lambda name, *options: error(monkeypatch, capsys, "convert", name, tmp_path / "out.gguf", *options)


def test_a_model_that_is_not_there(hub: HubServer, fails, monkeypatch) -> None:
    missing = f"{SITE} has no model nobody/nothing, and there is no such path here: check the spelling, or "
    assert fails("nobody/nothing") == missing + "it is private: then set HF_TOKEN, or run `hf auth login`"
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert fails("nobody/nothing") == missing + "your token may not read it"


def test_a_private_model(hub: HubServer, fails, monkeypatch) -> None:
    hub.add("tests/private", {"config.json": b"{}"}, private=True)
    assert "it is private: then set HF_TOKEN" in fails("tests/private")


def test_a_gated_model(hub: HubServer, demo: Repository, fails, monkeypatch) -> None:
    demo.gated = True
    page = f"{SITE}/{demo.name}"
    assert fails(demo.name) == (
        f"{demo.name} is gated: accept its conditions at {page}, then set HF_TOKEN, or run `hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", "hf_poor")
    assert (
        fails(demo.name)
        == f"{demo.name} is gated, and your account has no access: ask for it at {page}, then try again"
    )


def test_a_wrong_token(hub: HubServer, demo: Repository, fails, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    assert fails(demo.name) == (
        f"{SITE} refuses your token: HF_TOKEN is wrong or has expired; unset it for public models, or set a new one"
    )


def test_a_token_that_cant_be_sent(hub: HubServer, demo: Repository, fails, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_gööd")
    assert fails(demo.name) == (
        "your token has characters that can't be sent: HF_TOKEN is wrong or has expired; unset it for public models, "
        "or set a new one"
    )


def test_no_token_and_no_password_is_ever_shown(
    hub: HubServer, demo: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wr0ng")
    monkeypatch.setenv("TRITGGUF_DEBUG", "1")
    monkeypatch.setattr("sys.argv", ["tritgguf", "convert", demo.name, str(tmp_path / "out.gguf")])
    monkeypatch.setattr(client.hub(), "endpoint", f"http://me:passw0rd@127.0.0.1:{hub_endpoint.PORT}")
    with pytest.raises(HubError, match="refuses your token") as caught:
        main()
    shown = "".join(traceback.format_exception(caught.value))
    assert "HfHubHTTPError" in shown
    assert "hf_wr0ng" not in shown
    assert "passw0rd" not in str(caught.value)


def test_a_disabled_model(hub: HubServer, demo: Repository, fails) -> None:
    demo.disabled = True
    assert fails(demo.name).startswith(f"{demo.name} was disabled by the hub ({SITE}/{demo.name} may say why)")


def test_a_missing_revision(hub: HubServer, demo: Repository, fails) -> None:
    wanted = f"{demo.name} has no revision v9: give a branch, a tag or a commit, such as at {SITE}/{demo.name}/commits"
    assert fails(f"{demo.name}@v9") == wanted
    assert fails(demo.name, "--revision", "v9") == wanted
    assert "leave one out" in fails(f"{demo.name}@v9", "--revision", "v8")
    assert "--revision is for models on the hub" in fails("./nothing", "--revision", "v9")
    assert "has no revision ../../x" in fails(f"{demo.name}@../../x")


def test_missing_files(hub: HubServer, fails) -> None:
    hub.add("tests/ggufs", {"a-Q2_0.gguf": b"GGUF", "a-TQ1_0.gguf": b"GGUF"})
    assert fails("tests/ggufs:Q8_0").startswith(
        "tests/ggufs has no GGUF file Q8_0; name one that it has: tests/ggufs:a-Q2"
    )
    assert fails("tests/ggufs").startswith("tests/ggufs holds 2 GGUF files: name one: tests/ggufs:a-Q2_0.gguf, ")


def test_a_path_that_is_not_there_keeps_its_message(hub: HubServer, fails, monkeypatch, capsys) -> None:
    for path in ("./nothing/here", "nothing", "a/b/c"):
        assert "doesn't exist; expected a Hugging Face model folder" in fails(path)
    assert "no such file" in error(monkeypatch, capsys, "chat", "models/none.gguf", "--prompt", "x")
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("/api/models", status=503), "has trouble (status 503): try again later"),
        (Fault("/api/models", status=429, times=9), "(429, too many requests): try again in some minutes; who is "
         "logged in may ask more often (set HF_TOKEN, or run `hf auth login`)"),
        (Fault("config", status=429, headers={"Retry-After": "300"}), "asks to wait (429, too many requests)"),
        (Fault("model.safetensors", status=502, times=9), "has trouble (status 502): try again later"),
        (Fault("model.safetensors", after=0, times=9), "can't be reached"),
        (Fault("/api/models", status=200), "doesn't answer as a hub does; check HF_ENDPOINT"),
        (Fault("/api/models", status=418), "answered with status 418; check HF_ENDPOINT and the name"),
        (Fault("config", status=404, headers={"X-Error-Code": "EntryNotFound"}), "a file that the hub listed isn't"),
    ],
    ids=lambda value: value.pattern + str(value.status) if isinstance(value, Fault) else "",
)  # fmt: skip
def test_a_hub_in_trouble(hub: HubServer, demo: Repository, fails, fault: Fault, message: str) -> None:
    hub.faults.append(fault)
    assert message in fails(demo.name)


def test_a_disk_that_is_too_small_is_noticed_first(hub: HubServer, demo: Repository, fails) -> None:
    demo.listed["model.safetensors"] = 10**18
    assert fails(demo.name).endswith("left: free some, or set HF_HOME to a folder on another disk")
    assert not hub.sent("/resolve/|cdn")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
def test_a_disk_that_fills_up(hub: HubServer, demo: Repository, fails) -> None:
    from tritgguf.runtime.hub.names import ModelName
    from tritgguf.runtime.hub.snapshot import on_the_hub, storage

    etag = on_the_hub(ModelName(demo.name)).files["model.safetensors"].etag
    blobs = storage(demo.name) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag}.incomplete").symlink_to("/dev/full")
    assert "no space left on the disk of" in fails(demo.name)


def test_a_cache_that_is_a_file(hub: HubServer, demo: Repository, fails) -> None:
    from tritgguf.runtime.hub.snapshot import storage

    storage(demo.name).parent.mkdir(parents=True, exist_ok=True)
    storage(demo.name).write_text("")
    assert "can't be used: " in (line := fails(demo.name))
    assert line.endswith("set HF_HOME to a folder that can be written")


def child(tmp_path: Path, name: str, **variables: str) -> str:
    """Run `tritgguf inspect NAME` in a process of its own and return its one line."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), **variables}
    command = [sys.executable, "-m", "tritgguf", "inspect", name]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    return done.stderr.strip()


def test_no_network(tmp_path: Path) -> None:
    line = child(tmp_path, "org/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert line.startswith("error: org/name isn't here, and http://127.0.0.1:9 can't be reached (")
    assert line.endswith("): check the path, or the network, HTTPS_PROXY and HF_ENDPOINT")


def test_an_endpoint_that_is_no_address(tmp_path: Path) -> None:
    printed = child(tmp_path, "org/name", HF_ENDPOINT="http://user:secret@[x")
    assert "check HF_ENDPOINT, which is an address such as" in printed
    assert "secret" not in printed


def test_offline(tmp_path: Path) -> None:
    line = child(tmp_path, "org/name", HF_HUB_OFFLINE="1")
    assert line.startswith(
        f"error: org/name isn't complete in {tmp_path}/home/hub, and HF_HUB_OFFLINE forbids to fetch it"
    )


def test_nothing_is_fetched_for_a_conversion_that_cannot_be_written(
    hub: HubServer, demo: Repository, fails, tmp_path
) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    assert "exists already" in fails(demo.name)
    assert "tq9" in fails(demo.name, "--force", "--type", "tq9")
    assert not hub.requests

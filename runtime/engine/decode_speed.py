"""How fast tokens are generated here with weights of each type: measured once, kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import EngineError, OutputError
from tritgguf.runtime.engine import child_process
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.engine.kernels.install import installed_library, requested_mode

SECONDS = 60  # ends what hangs
COMMAND = child_process.command("tritgguf.runtime.engine.decode_speed_process")


def seconds_per_weight() -> Mapping[str, float]:
    """Return the seconds that a weight takes in one generated token, by the types that `auto` chooses from on this CPU.

    They are measured where they aren't known, which takes a second. Raises EngineError where they can't be.
    """
    path = _file()
    found = _read(path)
    if found is None:
        found = _measured()
        with contextlib.suppress(OSError, OutputError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(found).encode(), force=True)
    return found


def seconds_if_known(say: Callable[[str], None]) -> Mapping[str, float]:
    """Return the same, and where it can't be measured nothing: then `say` is told what follows from that."""
    try:
        return seconds_per_weight()
    except EngineError as error:
        say(f"{error}: of exact types, the smallest one is chosen")
        return {}


def forget() -> None:
    """Remove what is kept about this build."""
    with contextlib.suppress(OSError, EngineError):
        _file().unlink(missing_ok=True)


def _file() -> Path:
    """Return the file for the installed llama.cpp, this processor and its kernels; EngineError if there is none."""
    from tritgguf.runtime.engine.kernels.verdicts import build_digest  # not at the top: few need it

    libllama, version = installed_library()
    if libllama is None:
        raise EngineError("llama-cpp-python isn't installed here, so the types' speed can't be measured")
    what = f"{version} {requested_mode()} {default_threads()} {build_digest(str(libllama))}"
    name = hashlib.sha256(what.encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("tritgguf", appauthor=False) / "decode-speed" / f"{name}.json"


def _read(path: Path) -> dict[str, float] | None:
    """Return what is kept, None where there is nothing or the file is damaged."""
    try:
        found = {str(name): float(seconds) for name, seconds in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return found if all(0 < seconds < math.inf for seconds in found.values()) else None


def _measured() -> dict[str, float]:
    try:
        child = subprocess.run(
            COMMAND,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
            env=child_process.environment(),
        )
        found: dict[str, float] = json.loads(child.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"the types' speed couldn't be measured ({type(error).__name__})") from error
    except ValueError:
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {child.returncode}"]
        raise EngineError(f"the types' speed couldn't be measured ({lines[-1]})") from None
    return found

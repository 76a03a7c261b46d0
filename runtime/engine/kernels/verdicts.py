"""The self-tests' verdicts, kept in the user's cache folder: one file per build, processor and route."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from functools import cache
from pathlib import Path

import platformdirs

from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import OutputError
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels import self_test
from tritgguf.runtime.engine.kernels.routes import Route

_LIBRARY_SUFFIXES = (".so", ".dylib", ".dll")


def verdict(libllama: str, route: Route, instructions: str) -> str | None:
    """Return why a route isn't to be taken, None where it is; run the self-test unless its verdict is known."""
    path = _file(libllama, route, instructions)
    found = read(path)
    if found is None:
        found = self_test.run(libllama, route)
        if found.lasting:
            _write(path, found)
    return found.why_not


def known_verdict(libllama: str, route: Route, instructions: str) -> str | None:
    """Return the same without a test, which takes a second: a route that wasn't tested yet counts as good."""
    found = read(_file(libllama, route, instructions))
    return None if found is None else found.why_not


def _file(libllama: str, route: Route, instructions: str) -> Path:
    """Return the file of a verdict."""
    what = hashlib.sha256(f"{route} {instructions} {build_digest(libllama)}".encode())
    return platformdirs.user_cache_path("tritgguf", appauthor=False) / "cpu-kernels" / f"{what.hexdigest()[:32]}.json"


@cache
def build_digest(libllama: str) -> str:
    """Return a digest of the libraries' bytes and the processor."""
    what = hashlib.sha256(processor().encode())
    beside = [path for path in Path(libllama).parent.glob("*ggml*") if path.suffix in _LIBRARY_SUFFIXES]
    for library in filter(Path.exists, (compiled.PATH, *sorted(beside))):
        what.update(library.name.encode() + library.read_bytes())
    return what.hexdigest()


def processor() -> str:
    """Return the processor's name and instructions, as far as the system tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        first = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
        return " ".join(sorted(set(first)))
    return f"{platform.machine()} {platform.processor()}"


def read(path: Path) -> self_test.Verdict | None:
    """Return a verdict, None where there is none or the file is damaged."""
    try:
        why_not = json.loads(path.read_text("utf-8"))["why_not"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return self_test.Verdict(why_not) if why_not is None or isinstance(why_not, str) else None


def _write(path: Path, found: self_test.Verdict) -> None:
    """Keep a verdict; where that isn't possible, the next process tests again."""
    with contextlib.suppress(OSError, OutputError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"why_not": found.why_not}).encode(), force=True)

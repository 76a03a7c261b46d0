"""Run `tritgguf`, and stop it at a point: `POINT ACTION ARGUMENTS`, for tests/runtime/hub/cache/test_interruptions.py.

ACTION is the name of a signal, which the process sends itself there, or `wait`: then it prints "here" and goes on when
its standard input is closed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tritgguf.converter.conversion import pipeline
from tritgguf.converter.core import whole_files
from tritgguf.runtime.cli.main import main
from tritgguf.runtime.engine import decode_speed
from tritgguf.runtime.hub import cache, conversion, obtain

# Each is a function and the number of its call that is the point: nothing of that call has happened then.
POINTS: dict[str, tuple[Any, str, int]] = {
    "fetching": (obtain, "locate", 1),
    "planned": (pipeline, "part_paths", 1),
    "writing": (pipeline, "write_tensors", 1),
    "published": (conversion, "digest", 1),
    "recording": (whole_files, "write_whole", 1),
    "recorded": (cache.Cache, "tidy", 2),
}


def stop(action: str) -> None:
    if action == "wait":
        print("here", flush=True)
        sys.stdin.read()
    else:
        os.kill(os.getpid(), getattr(signal, action))


def stopping(function: Callable[..., Any], number: int, action: str) -> Callable[..., Any]:
    calls = itertools.count(1)

    def stopped(*arguments: object, **options: object) -> Any:
        if next(calls) == number:
            stop(action)
        return function(*arguments, **options)

    return stopped


if __name__ == "__main__":
    point, action, *arguments = sys.argv[1:]
    if action.startswith("named-"):  # as on systems where unfinished files need names
        vars(os).pop("O_TMPFILE", None)
        action = action.removeprefix("named-")
    if point != "nowhere":
        owner, name, number = POINTS[point]
        setattr(owner, name, stopping(getattr(owner, name), number, action))
    vars(decode_speed)["seconds_per_weight"] = dict  # as conftest.py has it
    sys.argv = ["tritgguf", *arguments]
    main()

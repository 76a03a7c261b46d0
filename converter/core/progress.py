"""How long work tells what it has done: a callback that gets a stage, the bytes done and the bytes in all."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
Step = Callable[[int], None]


def counted(progress: Progress | None, stage: str, total: int) -> Step:
    """Return a function that adds up the bytes it is called with, and passes the sum on with the total."""
    done = 0

    def step(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress(stage, done, total)

    return step

"""Progress reports of long operations: a callback that gets a stage's name, the bytes done and the total bytes."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
Step = Callable[[int], None]


def counted(progress: Progress | None, stage: str, total: int) -> Step:
    """Return a function that adds up the numbers of bytes it gets and reports each sum to `progress`."""
    done = 0

    def step(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        if progress:
            progress(stage, done, total)

    return step

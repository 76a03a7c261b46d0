"""A streamed response whose client takes nothing, or is gone: what is behind it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tritgguf.runtime.server.http import Limits, Stream


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"part"
        await asyncio.sleep(0)


async def respond(*, takes: int, stays: bool) -> list[str]:
    """Return what happened to a response of which the client takes so many messages, and then nothing or its leave."""
    happened: list[str] = []
    taken = 0
    left = asyncio.Event()

    async def send(_: Any) -> None:
        nonlocal taken
        if taken == takes:
            if not stays:
                left.set()
            await asyncio.Event().wait()
        taken += 1

    async def receive() -> dict[str, str]:
        await left.wait()
        return {"type": "http.disconnect"}

    def abort(_: Any) -> None:
        happened.append("aborted")
        left.set()  # as a server tells of a connection that was cut

    stream = Stream(
        endless(),
        media_type="text/plain",
        limits=Limits(send_seconds=0.01),
        close=lambda: happened.append("closed"),
        abort=abort,
    )
    await stream({"type": "http", "headers": []}, receive, send)
    return happened


@pytest.mark.parametrize("takes", [0, 1, 5])
def test_a_client_that_takes_nothing_is_cut_off(takes):
    assert asyncio.run(respond(takes=takes, stays=True)) == ["aborted", "closed"]


@pytest.mark.parametrize("takes", [0, 1, 5])
def test_a_client_that_leaves_ends_the_answer(takes):
    assert asyncio.run(respond(takes=takes, stays=False))[-1] == "closed"

"""Embeddings beside answers: texts are evaluated part by part, and others' tokens come between the parts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from tritgguf.runtime.server.decode_thread import DecodeThread
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.models import EMBEDDED_AT_ONCE, Capacity, ServedModel, open_models
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.service import Service

NEVER_END = {256: -100.0, 257: -100.0, 258: -100.0}
TEXTS = [[(n * seed) % 250 for n in range(6 * EMBEDDED_AT_ONCE)] for seed in (3, 5, 7)]


@pytest.fixture
def service(caller) -> Iterator[Service]:
    with open_models([("caller", caller)], Capacity(n_slots=1, n_ctx=4096, n_threads=1)) as models:
        thread = DecodeThread([models.all[0].batcher], max_waiting=10)
        thread.start()
        yield Service(models, thread, seconds=1000)
        thread.stop()


def test_a_long_text_holds_up_no_answer(service):
    served = service.models.all[0]
    order = Order(text=[5, 6, 7], max_tokens=4000, logit_bias=NEVER_END, settings={"temperature": 0.0})

    async def generated_meanwhile() -> list[int]:
        answer, counts = await service.start(served, order), []
        while not answer.job.stats.n_generated:
            await asyncio.sleep(0.01)
        for text in TEXTS:
            before = answer.job.stats.n_generated
            await service.embed(served, [text])
            counts.append(answer.job.stats.n_generated - before)
        answer.close()
        return counts

    parts = len(TEXTS[0]) // EMBEDDED_AT_ONCE
    assert min(asyncio.run(generated_meanwhile())) >= parts - 1


def test_texts_that_come_together_are_not_mixed(service):
    served = service.models.all[0]

    async def together() -> list[list[list[float]]]:
        gone = asyncio.ensure_future(service.embed(served, TEXTS))
        await asyncio.sleep(0)
        gone.cancel()  # a client that hangs up in the middle
        return await asyncio.gather(*(service.embed(served, [text]) for text in TEXTS))

    found = np.array(asyncio.run(together()))[:, 0]
    alone = np.array([asyncio.run(service.embed(served, [text]))[0] for text in TEXTS])
    assert np.array_equal(found, alone)
    assert served.batcher.n_embedding == 0


def test_a_request_for_embeddings_has_a_limit_too(service):
    served: ServedModel = service.models.all[0]
    late = Service(service.models, service.thread, seconds=-1)
    with pytest.raises(RequestError, match="longer than this server allows") as caught:
        asyncio.run(late.embed(served, TEXTS))
    assert (caught.value.status, served.batcher.n_embedding) == (504, 0)

"""What is measured, in which order; never how fast it is."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from tritgguf.converter import EngineError
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.engine.hardware import default_threads
from tritgguf.runtime.measure import bench_plot
from tritgguf.runtime.measure.bench import bench, fastest_threads


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int, int]]:
    """Every call of decode: the context's id, its threads, how many tokens, from which position."""
    calls: list[tuple[int, int, int, int]] = []
    decode = Context.decode

    def recorded(self: Context, tokens: list[int], position: int, **options: int) -> None:
        calls.append((id(self), self.n_threads, len(tokens), position))
        decode(self, tokens, position, **options)

    monkeypatch.setattr(Context, "decode", recorded)
    return calls


def test_files_take_turns(decoded: list, random_model: Path, make_model, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other.gguf")
    found = bench([random_model, other], prompt_tokens=[20], generate=[3], threads=[1], batches=[8], repeat=2)
    first = decoded[0][0]
    (second,) = {call[0] for call in decoded} - {first}
    warm = [(1, 1, 0)]
    prompt, generation = [(1, 8, 0), (1, 8, 8), (1, 4, 16)], [(1, 1, 0), (1, 1, 1), (1, 1, 2)]
    one_way = [(context, work) for work in (prompt, generation) for context in (first, second)]
    expected = [
        (context, *call) for turn in (one_way, one_way[::-1], one_way) for context, work in turn for call in warm + work
    ]
    assert decoded == expected
    assert [(series.path, series.test.name, len(series.rates)) for series in found.series] == [
        (random_model, "pp20", 2),
        (other, "pp20", 2),
        (random_model, "tg3", 2),
        (other, "tg3", 2),
    ]


def test_every_setting_is_measured(random_model: Path) -> None:
    done: list[tuple[str, int, int]] = []
    found = bench(
        [random_model],
        prompt_tokens=[4, 8],
        generate=[2],
        threads=[1, 2],
        batches=[4, 8],
        repeat=1,
        progress=lambda *step: done.append(step),
    )
    settings = [(series.test.name, series.threads, series.batch) for series in found.series]
    assert settings == [
        *((f"pp{length}", threads, batch) for length in (4, 8) for threads in (1, 2) for batch in (4, 8)),
        *(("tg2", threads, 4) for threads in (1, 2)),  # batches are for prompts
    ]
    assert done[-1] == ("measuring", 2 * (4 * 4 + 4 * 8 + 2 * 2), 2 * (4 * 4 + 4 * 8 + 2 * 2))
    run = found.as_json()["runs"][0]
    assert (run["prompt_tokens"], run["generated_tokens"], run["threads"], run["batch"]) == (4, 0, 1, 4)
    assert run["min"] <= run["tokens_per_second"] <= run["max"]
    assert run["samples"] == [run["tokens_per_second"]]


def test_logits_are_those_of_any_other_decode(random_model: Path) -> None:
    """What is timed is the real work: after a run, the context has the last token's logits."""
    from tritgguf import runtime
    from tritgguf.runtime.engine.backend import Model
    from tritgguf.runtime.measure.bench import Test

    ids = [5, 9, 13, 27, 31]
    with Model(random_model) as model, runtime.open(random_model) as session:
        context = Context(model, n_ctx=64, n_threads=1, n_batch=2)
        session.evaluate(ids)
        for generates in (False, True):
            Test(5, generates).run(context, ids)
            np.testing.assert_allclose(context.logits(), session.context.logits(), atol=0.1)
        context.close()


def test_the_default_number_of_threads(decoded: list, random_model: Path, monkeypatch) -> None:
    monkeypatch.setattr("tritgguf.runtime.measure.bench.default_threads", lambda: 3)
    found = bench([random_model], prompt_tokens=[4], generate=[], repeat=1)
    assert found.sweep is not None
    assert sorted(found.sweep) == [1, 3]
    assert {call[1] for call in decoded} == {1, 3}
    best = min(found.sweep.values())
    assert found.series[0].threads == min(n for n, seconds in found.sweep.items() if seconds <= 1.05 * best)


def test_no_more_threads_than_cores_are_tried(random_model: Path) -> None:
    from tritgguf.runtime.engine.backend import Model

    with Model(random_model) as model:
        context = Context(model, n_ctx=64, n_threads=1, n_batch=64)
        found = fastest_threads(context, [1, 2, 3])
        context.close()
    assert max(found) == default_threads()
    assert min(found) == 1


def test_a_test_longer_than_the_context(random_model: Path) -> None:
    with pytest.raises(EngineError, match=r"was trained for a context of 512 tokens, the longest test has 513; choose"):
        bench([random_model], prompt_tokens=[513])


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs the bench extra")
def test_a_picture(random_model: Path) -> None:
    found = bench([random_model, random_model], prompt_tokens=[4], generate=[2], threads=[1, 2], repeat=2)
    picture = bench_plot.plot(found)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000

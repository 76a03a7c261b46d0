"""Prompts that are too long, and answers that reach the end of their context: refused, shortened, ended or shifted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import llama_cpp
import ollama
import openai
import pytest

from tests import checkpoints
from tests.runtime.server.test_batcher import PROMPTS, Slots
from tests.served import PATIENCE_SECONDS, Served, serve
from tritgguf.converter import convert
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context
from tritgguf.runtime.server.models import Capacity, ServedModel, open_models
from tritgguf.runtime.server.order import Order
from tritgguf.runtime.server.prompt import kept_tokens, prompt_of

N_CTX = 256
KEEP = 5
NEVER_END = {"1": -100}  # the demo model's end of a turn
SYSTEM = {"role": "system", "content": "You are a small robot."}


def continued(model: Model, prompt: list[int], n_tokens: int, *, shifts: bool) -> list[int]:
    """Return the most probable tokens behind a prompt, in a context of its own.

    When it is full, half of what is behind KEEP tokens goes: as in llama.cpp's own server, or, where the context can't
    be shifted, by evaluating the rest from its beginning.
    """
    context = Context(model, n_ctx=N_CTX, n_threads=1, n_batch=64)
    memory = llama_cpp.llama_get_memory(context.handle)
    found: list[int] = []
    tokens, n_cached = list(prompt), 0
    while len(found) < n_tokens:
        if len(tokens) == N_CTX:
            n_discard = (len(tokens) - KEEP) // 2
            del tokens[KEEP : KEEP + n_discard]
            if shifts:
                assert llama_cpp.llama_memory_seq_rm(memory, 0, KEEP, KEEP + n_discard)
                llama_cpp.llama_memory_seq_add(memory, 0, KEEP + n_discard, -1, -n_discard)
                n_cached -= n_discard
            else:
                llama_cpp.llama_memory_clear(memory, True)
                n_cached = 0
        for start in range(n_cached, len(tokens), 64):
            context.decode(tokens[start : start + 64], start)
        n_cached = len(tokens)
        found.append(int(context.logits()[-1].argmax()))
        tokens.append(found[-1])
    context.close()
    return found


def generated(slots: Slots, prompt: list[int], limit: int, *, keep: int | None = KEEP) -> list[int]:
    """Return a list to which the tokens of a new job are added as they come."""
    job, _ = slots.job(prompt, limit=limit)
    job.keep = keep
    tokens: list[int] = []
    take = job.take
    job.take = lambda vocab, token, logits: tokens.append(token) or take(vocab, token, logits)
    return tokens


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory) -> Iterator[Model]:
    """A model whose vocabulary has no end of a text."""
    with Model(make_model(tmp_path_factory.mktemp("endless") / "model.gguf")) as opened:
        yield opened


@pytest.mark.parametrize("n_slots", [1, 3])
def test_a_full_context_is_shifted_as_llama_cpps_server_does_it(model, n_slots):
    slots = Slots(model, n_slots)
    prompts = PROMPTS[:n_slots]
    found = [generated(slots, prompt, 400) for prompt in prompts]
    slots.run()
    for tokens, prompt in zip(found, prompts, strict=True):
        expected = continued(model, prompt, 400, shifts=True)
        assert tokens == expected[: len(tokens)]
        assert len(tokens) == 400 or model.vocab.is_end(tokens[-1])
    assert slots.batcher.totals.shifts >= 2
    slots.context.close()


def test_what_was_shifted_is_of_no_use_to_others(model):
    """It has seen what was dropped: the same tokens as a prompt are evaluated anew, but for those that stayed."""
    slots = Slots(model, 2)
    generated(slots, PROMPTS[0], 300)
    job = slots.batcher.waiting[0]
    while slots.batcher.totals.shifts == 0:
        slots.batcher.step(lambda: False)
    copy = job.tokens[:100]
    while_it_runs = generated(slots, copy, 20)
    second = slots.batcher.waiting[0]
    slots.run()
    third = generated(slots, copy, 20)
    slots.run()
    assert second.stats.n_cached == KEEP
    assert while_it_runs == third == continued(model, copy, 20, shifts=True)[: len(third)]
    slots.context.close()


def test_tokens_that_two_slots_share_are_not_moved(model):
    shared = PROMPTS[4] + PROMPTS[3][:60]
    slots = Slots(model, 2)
    first = generated(slots, [*shared, 1], 150)
    slots.batcher.step(lambda: False)
    while slots.batcher.totals.generated_tokens + len(first) == 0:
        slots.batcher.step(lambda: False)
    second = generated(slots, [*shared, 2], 40, keep=None)
    slots.run()
    assert slots.batcher.totals.cached_tokens == len(shared)
    assert slots.batcher.totals.shifts > 0
    assert second == continued(model, [*shared, 2], 40, shifts=True)[: len(second)]
    assert first == continued(model, [*shared, 1], 150, shifts=False)[: len(first)]
    slots.context.close()


def test_a_state_is_computed_again(tmp_path):
    """A linear attention's state can't lose what it has seen, though llama.cpp would shift the other layers' caches."""
    path = convert(checkpoints.build("qwen35", tmp_path / "model"), tmp_path / "out.gguf", "f32", check=False).out
    prompt = [(number * 7) % 200 + 3 for number in range(200)]
    with Model(path) as model:
        slots = Slots(model, 1)
        assert not slots.context.can_shift
        tokens = generated(slots, prompt, 100)
        slots.run()
        slots.context.close()
        assert slots.batcher.totals.shifts > 0
        assert tokens == continued(model, prompt, 100, shifts=False)[: len(tokens)]


@pytest.fixture(scope="module")
def opened(demo) -> Iterator[ServedModel]:
    with open_models([("demo", demo)], Capacity(n_slots=1, n_ctx=N_CTX, n_threads=1)) as models:
        yield models.all[0]


def test_the_system_message_stays(opened):
    messages = [SYSTEM, {"role": "user", "content": "Who are you?"}]
    prompt = prompt_of(opened, Order(messages=messages))
    n_kept = kept_tokens(opened, Order(messages=messages), prompt)
    kept = opened.model.vocab.detokenize(prompt[:n_kept], special=True).decode()
    assert SYSTEM["content"] in kept
    assert "Who" not in kept
    n_bos = int(opened.model.vocab.add_bos)
    assert kept_tokens(opened, Order(messages=messages[1:]), prompt) == n_bos
    assert kept_tokens(opened, Order(messages=messages, keep=7), prompt) == 7 + n_bos
    assert kept_tokens(opened, Order(messages=messages, keep=-1), prompt) == len(prompt)
    assert kept_tokens(opened, Order(text="x", keep=10_000), prompt) == 192


def roles_left(opened: ServedModel, messages: list[dict], **order) -> str:
    """Return the messages that a prompt still has, by the words in them."""
    prompt = prompt_of(opened, Order(messages=messages, drop_old=True, **order))
    text = opened.model.vocab.detokenize(prompt, special=True).decode()
    return " ".join(message["content"].split()[0] for message in messages if message["content"] in text)


def test_the_oldest_messages_are_left_out_and_system_messages_stay(opened):
    def turn(number: int) -> list[dict]:
        return [{"role": role, "content": f"{role}{number}" + " dog" * 20} for role in ("user", "assistant")]

    turns = [message for number in range(1, 30) for message in turn(number)]
    last = {"role": "user", "content": "Last question"}
    answer = {"max_tokens": 16}
    assert roles_left(opened, [SYSTEM, *turns[:2], last], **answer) == "You user1 assistant1 Last"
    left = roles_left(opened, [SYSTEM, *turns, last], **answer).split()
    assert (left[0], left[-1]) == ("You", "Last")
    assert left[1:-1] == [message["content"].split()[0] for message in turns[-len(left) + 2 :]]
    assert left[1].startswith("user")
    more = roles_left(opened, [SYSTEM, *turns, last], max_tokens=None).split()
    assert 2 < len(more) < len(left)  # an answer of unknown length has more room


def test_a_later_system_message_and_the_call_of_a_result_stay_too(caller):
    turns = [{"role": role, "content": f"{role}{n} {'dog ' * 20}"} for n in range(30) for role in ("user", "assistant")]
    later = {"role": "system", "content": "Speak French"}
    call = {"role": "assistant", "content": "call", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    result = {"role": "tool", "content": "result"}
    with open_models([("caller", caller)], Capacity(n_slots=1, n_ctx=1000, n_threads=1)) as models:
        opened = models.all[0]
        assert roles_left(opened, [SYSTEM, *turns[:2], later, *turns[2:]]).startswith("You Speak user2")
        long = {"role": "user", "content": "long " * 200}
        assert roles_left(opened, [SYSTEM, *turns, long, call, result, result]) == "You call result result"


@pytest.fixture(scope="module")
def shifting(demo) -> Iterator[Served]:
    with serve(demo, "--slots", "2", "--threads", "1", "--ctx", "128", "--context-shift") as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
def test_openais_answers_go_on_where_they_shall(served, shifting, stream):
    question = [SYSTEM, {"role": "user", "content": "Tell me a story."}]
    options = {"messages": question, "logit_bias": NEVER_END, "temperature": 0, "model": "demo", "stream": stream}

    def ask(server: Served, n_tokens: int) -> tuple[str, int]:
        with openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS
        ) as client:
            more = {"stream_options": {"include_usage": True}} if stream else {}
            answer = client.chat.completions.create(max_tokens=n_tokens, **options, **more)
            if not stream:
                return answer.choices[0].finish_reason, answer.usage.completion_tokens
            *chunks, last = answer
            return chunks[-1].choices[0].finish_reason, last.usage.completion_tokens

    shifts = shifting.metric("context_shifts_total")
    assert ask(shifting, 300) == ("length", 300)
    assert shifting.metric("context_shifts_total") > shifts
    if stream:
        reason, count = ask(served, 1000)
        assert reason == "length"
        assert 400 < count < 512


def test_a_shifted_answer_without_a_limit_ends(shifting):
    with openai.OpenAI(base_url=f"{shifting.url}/v1", api_key="none", timeout=PATIENCE_SECONDS) as client:
        question = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(model="demo", messages=question, logit_bias=NEVER_END)
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 10 * 128)


def ollamas(server: Served, n_tokens: int, **more) -> tuple[str, int]:
    """Ask for an answer that is as long, by a schema: Ollama's API has no logit_bias."""
    data = {"model": "demo", "messages": [{"role": "user", "content": "Tell me."}]}
    data["options"] = {"temperature": 0, "num_predict": n_tokens}
    data["format"] = {"type": "array", "minItems": n_tokens // 3, "items": {"type": "string", "minLength": 3}}
    with server.post("/api/chat", {**data, **more}, "Connection: close") as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    last = json.loads(answer[answer.rindex(b'{"model"') : answer.rindex(b"}") + 1])
    return last["done_reason"], last["eval_count"]


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_answers_end_and_go_on(shifting, stream):
    assert ollamas(shifting, 150, stream=stream) == ("length", 150)
    reason, count = ollamas(shifting, 150, stream=stream, shift=False)
    assert (reason, count < 128) == ("length", True)


def test_a_request_of_ollamas_api_may_ask_for_shifts(served):
    assert ollamas(served, 520, shift=True) == ("length", 520)
    reason, count = ollamas(served, 520)
    assert (reason, count < 512) == ("length", True)


def test_ollamas_truncation_can_be_forbidden(served):
    turns = [{"role": role, "content": "dog " * 60} for _ in range(8) for role in ("user", "assistant")]
    data = {"model": "demo", "messages": [*turns, {"role": "user", "content": "Hi"}], "options": {"num_predict": 2}}
    client = ollama.Client(host=served.url, timeout=PATIENCE_SECONDS)
    assert client.chat(**data).prompt_eval_count < 512
    response = client._client.post("/api/chat", json={**data, "truncate": False})
    assert (response.status_code, "maximum context length is 512" in response.json()["error"]) == (400, True)
    client._client.close()


def test_a_prompt_that_is_too_long_is_refused_where_contexts_are_shifted_too(shifting):
    with (
        openai.OpenAI(base_url=f"{shifting.url}/v1", api_key="none", timeout=PATIENCE_SECONDS) as client,
        pytest.raises(openai.BadRequestError, match="maximum context length is 128") as caught,
    ):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "dog " * 200}])
    assert caught.value.code == "context_length_exceeded"

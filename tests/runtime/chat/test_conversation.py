"""Conversations: history, prompt cache, a full context, interrupted answers."""

from __future__ import annotations

import itertools

import pytest

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime import Conversation


@pytest.fixture
def session(speaking_model):
    """Answers every question with "Yes."."""
    with tritgguf.runtime.open(speaking_model(list(b"Yes.")), n_ctx=200) as session:
        yield session


def say(conversation, text):
    return "".join(conversation.ask(text))


def turn(role, text):
    return {"role": role, "content": text}


def test_history_goes_into_the_next_prompt(session):
    conversation = Conversation(session, system="Be brief.", temperature=0)
    assert say(conversation, "One?") == "Yes."
    assert say(conversation, "Two?") == "Yes."
    turns = [turn("user", "One?"), turn("assistant", "Yes."), turn("user", "Two?"), turn("assistant", "Yes.")]
    assert conversation.turns == turns
    expected = session.chat_tokens([turn("system", "Be brief."), *turns[:3]])
    assert session.stats.n_prompt == len(expected)


def test_the_prompt_cache_serves_the_next_turn(session):
    conversation = Conversation(session, temperature=0)
    say(conversation, "One?")
    n_before = session.stats.n_prompt + session.stats.n_generated
    say(conversation, "Two?")
    assert session.stats.n_cached == n_before


def test_reset_forgets_the_turns_and_keeps_the_system_message(session):
    conversation = Conversation(session, system="Be brief.", temperature=0)
    say(conversation, "One?")
    conversation.reset()
    assert (conversation.turns, conversation.system) == ([], "Be brief.")
    say(conversation, "One?")
    assert session.stats.n_prompt == len(session.chat_tokens([turn("system", "Be brief."), turn("user", "One?")]))


def test_the_oldest_turns_are_dropped_when_the_context_is_full_and_the_system_message_stays(session):
    conversation = Conversation(session, system="Be brief.", temperature=0)
    dropped = []
    for number in range(8):
        answer = conversation.ask(f"Question number {number}?")
        assert "".join(answer) == "Yes."
        dropped.append(answer.dropped_turns)
        assert session.stats.n_prompt <= 150  # a quarter of 200 is kept for the answer
    assert dropped[0] == 0
    assert sum(dropped) > 0
    assert len(conversation.turns) == 2 * (8 - sum(dropped))
    assert conversation.turns[-2] == turn("user", "Question number 7?")
    everything = [turn("system", "Be brief."), *conversation.turns[:-1]]
    assert session.stats.n_prompt == len(session.chat_tokens(everything))


def test_a_full_context_drops_half_the_turns_and_the_next_turns_find_their_prefix_in_the_cache(speaking_model):
    with tritgguf.runtime.open(speaking_model(list(b"Yes.")), n_ctx=500, n_threads=1) as session:
        conversation = Conversation(session, temperature=0)
        dropped, n_before = [], 0
        for number in range(24):
            answer = conversation.ask(f"Question number {number}?")
            assert "".join(answer) == "Yes."
            dropped.append(answer.dropped_turns)
            if not answer.dropped_turns:
                assert session.stats.n_cached == n_before, f"question {number}"
            n_before = session.stats.n_prompt + session.stats.n_generated
    full = [number for number, n_turns in enumerate(dropped) if n_turns]
    assert len(full) >= 3
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(full)), dropped
    assert dropped[full[0]] == (full[0] + 1) // 2


def test_think_is_part_of_the_prompt(speaking_model):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}12345{% endif %}{{ '\\n' }}"
    with tritgguf.runtime.open(speaking_model(list(b"Yes."), template=template), n_threads=1) as session:
        counts = {}
        for think in (None, True, False):
            assert say(Conversation(session, think=think, temperature=0), "Hi") == "Yes."
            counts[think] = session.stats.n_prompt
    assert counts == {None: 3, True: 8, False: 3}


def test_a_message_too_long_for_the_context_is_refused_and_changes_nothing(session):
    conversation = Conversation(session, temperature=0)
    say(conversation, "One?")
    before = list(conversation.turns)
    with pytest.raises(EngineError, match="too many for a context of 200") as caught:
        conversation.ask("x" * 300)
    assert "\n" not in str(caught.value)
    assert conversation.turns == before
    assert say(conversation, "Two?") == "Yes."


def test_a_message_that_fits_only_alone_drops_all_turns(session):
    conversation = Conversation(session, temperature=0)
    say(conversation, "One?")
    say(conversation, "Two?")
    answer = conversation.ask("x" * 130)
    assert answer.dropped_turns == 2
    assert "".join(answer) == "Yes."
    assert len(conversation.turns) == 2


def test_an_answer_that_fills_the_context_says_so(random_model):
    with tritgguf.runtime.open(random_model, n_ctx=64) as session:
        answer = Conversation(session, temperature=0).ask("Hi")
        "".join(answer)
        assert answer.finish == "context"
        assert session.stats.n_prompt + session.stats.n_generated == 64


def test_an_answer_cut_by_max_tokens_says_so(session):
    conversation = Conversation(session, temperature=0, max_tokens=2)
    answer = conversation.ask("One?")
    assert ("".join(answer), answer.finish) == ("Ye", "max_tokens")
    assert conversation.turns[-1] == turn("assistant", "Ye")


def test_an_interrupted_answer_keeps_what_was_said(session):
    conversation = Conversation(session, temperature=0)
    answer = conversation.ask("One?")
    assert [next(answer), next(answer)] == ["Y", "e"]
    answer.close()
    assert answer.finish == "interrupted"
    assert conversation.turns == [turn("user", "One?"), turn("assistant", "Ye")]


def test_the_next_question_interrupts_an_unfinished_answer(session):
    conversation = Conversation(session, temperature=0)
    next(conversation.ask("One?"))
    assert say(conversation, "Two?") == "Yes."
    assert [each["content"] for each in conversation.turns] == ["One?", "Y", "Two?", "Yes."]


def test_a_question_without_a_word_of_answer_counts_as_not_asked(session):
    conversation = Conversation(session, temperature=0)
    conversation.ask("One?").close()
    assert conversation.turns == []


def test_an_empty_answer_is_a_turn(speaking_model):
    with tritgguf.runtime.open(speaking_model([])) as session:
        conversation = Conversation(session, temperature=0)
        assert say(conversation, "One?") == ""
        assert conversation.turns == [turn("user", "One?"), turn("assistant", "")]


def test_a_base_model_completes_each_text_by_itself(speaking_model):
    with tritgguf.runtime.open(speaking_model(list(b"abc"), template=None)) as session:
        conversation = Conversation(session, system="ignored", temperature=0)
        for _ in range(2):
            assert say(conversation, "a") == "bc"
            assert session.stats.n_prompt == 1
        assert conversation.turns == []

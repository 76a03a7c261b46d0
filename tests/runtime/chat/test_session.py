"""Sessions: logits, generation, prompt cache. Oracle: llama-cpp-python's own high-level class on the same file."""

from __future__ import annotations

import codecs

import numpy as np
import pytest
from llama_cpp import Llama

import tritgguf.runtime
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.hardware import default_threads

PROMPT = "hello the world, what is that you say now? " * 3
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def llama(random_model):
    model = Llama(str(random_model), n_ctx=512, n_threads=1, logits_all=True, verbose=False)
    yield model
    model.close()


@pytest.fixture
def llama_of():
    models = []

    def load(path):
        models.append(Llama(str(path), vocab_only=True, verbose=False))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.fixture
def session(random_model):
    with tritgguf.runtime.open(random_model, n_threads=1) as session:
        yield session


def likeliest(session, prompt, n_tokens):
    """Greedy token ids by taking the best logit of the whole text again and again."""
    ids = session.tokenize(prompt)
    for _ in range(n_tokens):
        ids.append(int(session.logits(ids)[-1].argmax()))
    return ids[len(session.tokenize(prompt)) :]


@pytest.mark.parametrize("text", ["", "a", PROMPT, "<|im_start|>user\nhi<|im_end|>", "Grüße 日本 🙂\0 \r\n"])
@pytest.mark.parametrize("special", [True, False])
def test_token_ids_are_those_of_llama_cpp_python(session, llama, text, special):
    assert session.tokenize(text, special=special, bos=False) == llama.tokenize(
        text.encode(), add_bos=False, special=special
    )


def test_detokenize_is_the_inverse(session):
    text = "hello the world Grüße 日本 🙂\n"
    assert session.detokenize(session.tokenize(text)) == text
    ids = session.tokenize("<|im_start|>hi")
    assert (session.detokenize(ids), session.detokenize(ids, special=True)) == ("hi", "<|im_start|>hi")


def test_bos_stands_once(make_model, tmp_path):
    with tritgguf.runtime.open(make_model(tmp_path / "bos.gguf", add_bos=True)) as session:
        assert session.tokenize("hi") == session.tokenize("<|endoftext|>hi") == session.tokenize("hi", bos=True)
        assert session.tokenize("hi")[0] == 256
        assert session.tokenize("hi", bos=False) == session.tokenize("hi")[1:]


@pytest.mark.parametrize("n_tokens", [1, 63, 64, 65, 300])
def test_logits_equal_those_of_llama_cpp_python(session, llama, n_tokens):
    ids = np.random.default_rng(n_tokens).integers(0, 256, n_tokens).tolist()
    llama.reset()
    llama.eval(ids)
    expected, logits = np.array(llama.scores[:n_tokens]), session.logits(ids)
    assert (logits.dtype, logits.shape) == (np.float32, (n_tokens, session.n_vocab))
    assert np.linalg.norm(logits - expected) <= 1e-3 * np.linalg.norm(expected)


def test_logits_of_nothing_are_an_empty_array(session):
    assert session.logits([]).shape == (0, session.n_vocab)


def test_greedy_generation_takes_the_best_logit(session):
    expected = likeliest(session, PROMPT, 12)
    assert len(set(expected)) > 3
    generation = session.generate(PROMPT, **GREEDY)
    text = "".join(generation)
    whole_characters = codecs.getincrementaldecoder("utf-8")("replace")
    assert text == whole_characters.decode(session.model.vocab.detokenize(expected, special=False))
    assert (generation.finish, generation.stats.n_generated) == ("max_tokens", 12)


def test_a_shared_prompt_prefix_is_not_evaluated_again(session, random_model):
    first = "".join(session.generate(PROMPT, **GREEDY))
    assert session.stats.n_cached == 0
    longer = PROMPT + "and more of it"
    n_same = len(session.tokenize(PROMPT)) - 1
    cached = "".join(session.generate(longer, **GREEDY))
    assert session.stats.n_prompt == len(session.tokenize(longer))
    assert session.stats.n_cached >= n_same
    with tritgguf.runtime.open(random_model, n_threads=1) as fresh:
        assert "".join(fresh.generate(longer, **GREEDY)) == cached
        assert fresh.stats.n_cached == 0
    assert "".join(session.generate(PROMPT, **GREEDY)) == first
    assert session.stats.n_cached >= n_same - 1


def test_other_calls_between_two_tokens_do_not_disturb_a_generation(session):
    undisturbed = list(session.generate(PROMPT, **GREEDY))
    generation = session.generate(PROMPT, **GREEDY)
    pieces = [next(generation)]
    session.logits(session.tokenize("something else"))
    pieces.append(next(generation))
    list(session.generate("and another prompt", **GREEDY))
    assert [*pieces, *generation] == undisturbed


def test_the_same_seed_gives_the_same_text(session):
    def texts(**settings):
        return ["".join(session.generate(PROMPT, max_tokens=20, temperature=2.0, **settings)) for _ in range(2)]

    one, other = texts(seed=1), texts(seed=2)
    assert one[0] == one[1]
    assert one[0] != other[0]
    random = texts()
    assert random[0] != random[1]


def test_the_sessions_seed_is_the_default(random_model):
    texts = []
    for seed in (5, 5, 6):
        with tritgguf.runtime.open(random_model, seed=seed, n_threads=1) as session:
            texts.append("".join(session.generate(PROMPT, max_tokens=20, temperature=2.0)))
    assert texts[0] == texts[1] != texts[2]


def test_top_k_1_is_greedy_at_any_temperature(session):
    greedy = "".join(session.generate(PROMPT, **GREEDY))
    assert "".join(session.generate(PROMPT, max_tokens=12, temperature=5.0, top_k=1)) == greedy


def test_a_repeat_penalty_repeats_less(make_model, speaking_tensors, tmp_path):
    tensors = speaking_tensors({ord("\n"): ord("a"), ord("a"): ord("b"), ord("b"): ord("a")})
    tensors["output.weight"][ord("c"), ord("b")] = 0.5  # the second choice after b
    with tritgguf.runtime.open(make_model(tmp_path / "ab.gguf", tensors)) as session:
        assert "".join(session.generate("\n", **GREEDY)) == "ab" * 6
        assert "".join(session.generate("\n", repeat_penalty=100.0, **GREEDY)).startswith("abc")
        # Tokens of the prompt count too.
        assert "".join(session.generate("a b", repeat_penalty=100.0, **GREEDY)).startswith("c")


def test_a_repeat_penalty_does_not_keep_an_answer_from_ending(make_model, speaking_tensors, tmp_path):
    tensors = speaking_tensors({ord("\n"): ord("a"), ord("a"): 258})
    tensors["output.weight"][ord("c"), ord("a")] = 0.5  # the second choice after a
    with tritgguf.runtime.open(make_model(tmp_path / "end.gguf", tensors)) as session:
        generation = session.chat([{"role": "user", "content": "Hi"}], repeat_penalty=100.0, **GREEDY)
        assert ("".join(generation), generation.finish) == ("a", "end")


def test_whole_characters_come_out_and_special_tokens_do_not(speaking_model):
    says = [*"A🙂é".encode(), 257, *b"B"]  # 257 is <|im_start|>, a control token
    with tritgguf.runtime.open(speaking_model(says)) as session:
        generation = session.chat([{"role": "user", "content": "Hi"}], temperature=0)
        assert list(generation) == ["A", "🙂", "é", "B"]
        assert generation.finish == "end"
        assert generation.stats.n_generated == len(says)


def test_sentencepiece_answers_start_without_the_space_before_the_first_word(
    make_model, speaking_tensors, llama_of, tmp_path
):
    template = "{% for m in messages %}{{ bos_token }}{{ m.content }}\n{% endfor %}"
    tensors = speaking_tensors({ord("\n") + 3: 259, 259: 260, 260: 2})
    path = make_model(tmp_path / "spm.gguf", tensors, template=template, sentencepiece=True, add_bos=True)
    with tritgguf.runtime.open(path) as session:
        messages = [{"role": "user", "content": "Grüße no"}]
        assert "".join(session.chat(messages, temperature=0)) == "Yes no"
        assert "".join(session.generate("\n", temperature=0)) == " Yes no"
        assert session.chat_tokens(messages) == llama_of(path).tokenize(
            "<s>Grüße no\n".encode(), add_bos=False, special=True
        )
        assert session.detokenize(session.tokenize("Grüße no", bos=False)).strip() == "Grüße no"


@pytest.mark.parametrize(
    ("stop", "text", "finish"),
    [
        ("cd", "ab", "stop"),
        (["xx", "e"], "abcd", "stop"),
        ("cde!", "abcdef", "end"),
        ("fg", "abcdef", "end"),
        ((), "abcdef", "end"),
    ],
)
def test_stop_strings(speaking_model, stop, text, finish):
    with tritgguf.runtime.open(speaking_model(list(b"abcdef"))) as session:
        generation = session.generate("\n", temperature=0, stop=stop)
        assert ("".join(generation), generation.finish) == (text, finish)


def test_a_generation_ends_with_the_context(random_model):
    with tritgguf.runtime.open(random_model, n_ctx=40, n_threads=1) as session:
        generation = session.generate(list(range(30)), temperature=0)
        list(generation)
        assert (generation.finish, generation.stats.n_generated) == ("context", 10)
        with pytest.raises(EngineError, match="40 tokens, the context of 40 has room for 39"):
            session.generate(list(range(40)))
        with pytest.raises(EngineError, match="41 tokens don't fit the context of 40"):
            session.logits(list(range(41)))
        assert session.logits(list(range(40))).shape[0] == 40


def test_the_context_is_the_trained_one_at_most(random_model, make_model, tmp_path):
    with tritgguf.runtime.open(random_model) as session:
        assert session.n_ctx == 512
    with tritgguf.runtime.open(make_model(tmp_path / "long.gguf", n_ctx_train=100_000)) as session:
        assert session.n_ctx == 4096
    for n_ctx in (513, 1, 0, -1):
        with pytest.raises(EngineError, match=f"a context of {n_ctx} tokens was requested, the model allows 2 to 512"):
            tritgguf.runtime.open(random_model, n_ctx=n_ctx)


def test_a_context_larger_than_memory_is_refused_before_the_system_kills_the_process(make_model, tmp_path):
    path = make_model(tmp_path / "huge.gguf", n_ctx_train=2_000_000_000)
    with pytest.raises(EngineError, match="ask for a smaller context"):
        tritgguf.runtime.open(path, n_ctx=2_000_000_000)


@pytest.mark.parametrize("ids", [[-1], [0, 288], [10**6]])
def test_token_ids_outside_the_vocabulary_are_refused(session, ids):
    for use in (session.logits, session.generate, session.detokenize):
        with pytest.raises(EngineError, match=r"isn't in 0\.\.287"):
            use(ids)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected 0.0 to 100.0"),
        ({"temperature": float("nan")}, "temperature is nan, expected a number"),
        ({"top_p": 1.5}, "top_p is 1.5, expected 0.0 to 1.0"),
        ({"top_k": -1}, "top_k is -1, expected 0 to"),
        ({"top_k": 1.5}, "top_k is 1.5, expected a whole number"),
        ({"min_p": 2}, "min_p is 2, expected 0.0 to 1.0"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0, expected 0.01 to 100.0"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967294"),
        ({"seed": 2**32 - 1}, "seed is 4294967295, expected 0 to 4294967294"),
        ({"max_tokens": 0}, "max_tokens is 0, expected at least 1"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
    ],
)
def test_settings_out_of_range_are_refused(session, settings, message):
    with pytest.raises(EngineError, match=message):
        session.generate("hi", **settings)


def test_an_empty_prompt_is_refused(session):
    with pytest.raises(EngineError, match="no tokens"):
        session.generate("")


def test_text_that_is_no_unicode_is_refused(session):
    with pytest.raises(EngineError, match="isn't valid Unicode at character 1"):
        session.tokenize("a\ud800")


def test_threads_out_of_range_are_refused(random_model):
    for n_threads in (0, -1, 513):
        with pytest.raises(EngineError, match="expected 1 to 512"):
            tritgguf.runtime.open(random_model, n_threads=n_threads)
    assert default_threads() >= 1


def test_nan_weights_are_found_out(make_model, tmp_path, random_tensors):
    random_tensors["blk.1.ffn_down.weight"][3, 5] = np.nan
    with (
        tritgguf.runtime.open(make_model(tmp_path / "nan.gguf", random_tensors)) as session,
        pytest.raises(EngineError, match="NaN"),
    ):
        next(session.generate("hi"))


def test_a_closed_session_says_so(random_model):
    session = tritgguf.runtime.open(random_model)
    older, generation = session.generate("a"), session.generate("hi")
    next(older)
    session.close()
    session.close()
    assert list(generation) == []
    uses = [
        lambda: session.tokenize("a"),
        lambda: session.logits([1]),
        lambda: session.generate([1]),
        lambda: next(older),
    ]
    for use in uses:
        with pytest.raises(EngineError, match="the session is closed"):
            use()


def test_chat_needs_a_template(make_model, tmp_path):
    with tritgguf.runtime.open(make_model(tmp_path / "base.gguf", template=None)) as session:
        assert not session.has_chat_template
        with pytest.raises(EngineError, match="no chat template"):
            session.chat([{"role": "user", "content": "Hi"}])


def test_rates_are_tokens_by_seconds(session):
    list(session.generate(PROMPT, **GREEDY))
    stats = session.stats
    assert stats.prompt_rate == pytest.approx(stats.n_prompt / stats.prompt_seconds)
    assert stats.generation_rate == pytest.approx(11 / stats.generation_seconds)

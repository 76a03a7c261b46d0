"""An order's prompt as token ids: what is left out where it is too long, and what stays when the context is full."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

from tritgguf.converter.errors import TritggufError
from tritgguf.runtime.chat.chat_template import Message
from tritgguf.runtime.chat.conversation import ANSWER_TOKENS
from tritgguf.runtime.engine.evaluator import common_prefix
from tritgguf.runtime.server.errors import RequestError
from tritgguf.runtime.server.models import ServedModel
from tritgguf.runtime.server.order import Order

# At most so much of a context stays when it is shifted: with little left to drop, it would be shifted all the time.
MOST_KEPT = 0.75


def prompt_of(served: ServedModel, order: Order, *, shifts: bool = False) -> list[int]:
    """Return the token ids of an order's prompt; RequestError if they don't leave room in the context.

    Where the oldest messages may be left out, an answer has room too, unless the context `shifts`.
    """
    if order.messages is None:
        tokens = served.prompts.text_tokens(order.text) if isinstance(order.text, str) else list(order.text)
        served.model.vocab.check(tokens)
        if not tokens:
            raise RequestError("the prompt is empty, there is nothing to continue")
    elif order.drop_old:
        answer = 1 if shifts else min(order.max_tokens or ANSWER_TOKENS, served.n_ctx // 4)
        tokens = _fitting(order.messages, lambda messages: _chat_tokens(served, order, messages), served.n_ctx - answer)
    else:
        tokens = _chat_tokens(served, order, order.messages)
    if len(tokens) >= served.n_ctx:
        # Clients that try again with less look for the first words, which are OpenAI's.
        raise RequestError(
            f"this model's maximum context length is {served.n_ctx} tokens here, and the prompt has {len(tokens)}: "
            "shorten it, or start the server with a larger --ctx",
            code="context_length_exceeded",
        )
    return tokens


def kept_tokens(served: ServedModel, order: Order, prompt: list[int]) -> int:
    """Return how many tokens at the start of a prompt stay when a full context is shifted.

    BOS, and of a conversation its system message and tools, unless the order says how many (-1 for the prompt).
    """
    n_bos = 1 if served.model.vocab.add_bos else 0
    if order.keep is not None:
        n_kept = len(prompt) if order.keep < 0 else order.keep + n_bos
    else:
        n_kept = max(n_bos, _n_leading(served, order, prompt))
    return min(n_kept, int(MOST_KEPT * served.n_ctx))


def _n_leading(served: ServedModel, order: Order, prompt: list[int]) -> int:
    """Return how many tokens a conversation has in common with every other one of the same system message and tools."""
    messages = order.messages or ()
    n_system = next((at for at, message in enumerate(messages) if message["role"] != "system"), 0)
    if not n_system and not order.tools:
        return 0
    shortest = [*messages[:n_system], {"role": "user", "content": ""}]
    try:
        return common_prefix(prompt, _chat_tokens(served, order, shortest))
    except RequestError:  # the template wants a question with a text
        return 0


def _chat_tokens(served: ServedModel, order: Order, messages: Sequence[Message]) -> list[int]:
    if served.model.chat_template is None:
        raise RequestError(f"{served.name} has no chat template: it is a base model, which only continues texts")
    try:
        return served.prompts.chat_tokens(messages, think=order.think, tools=order.tools)
    except RequestError:
        raise
    except TritggufError as error:
        raise RequestError(str(error), param="messages") from error


def _fitting(messages: Sequence[Message], tokens_of: Callable[[list[Message]], list[int]], room: int) -> list[int]:
    """Return the tokens of a conversation, without its oldest messages as far as it doesn't fit into `room` tokens.

    As Ollama does it: system messages and the last message always stay, and so does the call that a result belongs to.
    What is left begins with a question: templates expect one.
    """
    last = len(messages) - 1
    while last > 0 and messages[last]["role"] == "tool":
        last -= 1
    questions = [at for at, message in enumerate(messages) if message["role"] == "user" and 0 < at < last]
    starts = [0, *questions, last] if last else [0]
    found: dict[int, list[int]] = {}

    def fits(start: int) -> bool:
        system = [message for message in messages[:start] if message["role"] == "system"]
        found[start] = tokens_of([*system, *messages[start:]])
        return len(found[start]) <= room

    if fits(0):
        return found[0]
    start = starts[min(bisect_left(starts, True, lo=1, hi=len(starts) - 1, key=fits), len(starts) - 1)]
    if start not in found:
        fits(start)
    return found[start]

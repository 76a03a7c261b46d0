"""A conversation with a model: keeps the history, drops old turns when the context is full, allows interrupts."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from tritgguf.converter.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tritgguf.runtime.chat.generation import Finish, Generation
    from tritgguf.runtime.chat.session import Session
    from tritgguf.runtime.engine.sampling import Settings

# Old turns are dropped until an answer of this many tokens fits, or of a quarter of the context if that is less.
ANSWER_TOKENS = 512
# A message is refused if it leaves fewer tokens than this for the answer, even without any other turns.
MIN_ANSWER_TOKENS = 32


class Answer(Iterator[str]):
    """Yields the pieces of one answer; `dropped_turns` is how many old turns were dropped to make room for it."""

    def __init__(self, generation: Generation, pieces: Generator[str, None, None], dropped_turns: int) -> None:
        self.dropped_turns = dropped_turns
        self._generation = generation
        self._pieces = pieces
        next(self._pieces)  # runs it to its first yield: close() would skip the `finally` of a generator that never ran

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def finish(self) -> Finish:
        """Why the answer ended; "interrupted" until then."""
        return self._generation.finish

    def close(self) -> None:
        """Stop the answer; the history keeps the text that was generated before."""
        self._generation.close()
        self._pieces.close()


class Conversation:
    """A chat on one session, with its history.

    A model without a chat template continues each text by itself, without a history.
    """

    def __init__(
        self, session: Session, *, system: str | None = None, think: bool | None = None, **settings: Unpack[Settings]
    ) -> None:
        """`system` is the system message; `think` and `settings` are passed to Session.chat for each answer."""
        self.session = session
        self.system = system
        self.think = think
        self.settings = settings
        self.turns: list[dict[str, str]] = []  # user, assistant, user, assistant, …
        self._answer: Answer | None = None

    def reset(self) -> None:
        """Remove all turns; keep the system message."""
        self._close_answer()
        self.turns.clear()

    def ask(self, text: str) -> Answer:
        """Start the answer to `text`, and stop an earlier answer that is unfinished.

        If the context has no room, the older half of the turns is dropped. EngineError if the message alone doesn't
        fit.
        """
        self._close_answer()
        if not self.session.has_chat_template:
            generation = self.session.generate(text, **self.settings)
            self._answer = Answer(generation, self._complete(generation), 0)
            return self._answer
        question = {"role": "user", "content": text}
        n_messages = self._messages_to_drop(question)
        messages = self._messages(self.turns[n_messages:], question)
        generation = self.session.chat(messages, think=self.think, **self.settings)
        del self.turns[:n_messages]
        self._answer = Answer(generation, self._converse(generation, question), n_messages // 2)
        return self._answer

    def _close_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _messages(self, turns: list[dict[str, str]], question: dict[str, str]) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *turns, question]

    def _messages_to_drop(self, question: dict[str, str]) -> int:
        """Return how many of the oldest messages to drop for an answer to fit, in pairs of question and answer.

        Half of them, and half of the rest while that doesn't fit: the cache keeps nothing behind the first message that
        is dropped, so dropping one turn at a time would evaluate the whole conversation again for every question.
        """
        n_ctx = self.session.n_ctx
        room = min(self.settings.get("max_tokens") or ANSWER_TOKENS, n_ctx // 4)
        n_turns = len(self.turns) // 2
        n_kept = n_turns
        while (n_tokens := self._n_tokens(n_turns - n_kept, question)) + room > n_ctx:
            if n_kept == 0:
                break
            n_kept //= 2
        if n_tokens + min(room, MIN_ANSWER_TOKENS) <= n_ctx:
            return 2 * (n_turns - n_kept)
        raise EngineError(
            f"the message has {n_tokens} tokens with the template and the system message, "
            f"too many for a context of {n_ctx}: shorten it or use a larger context"
        )

    def _n_tokens(self, n_dropped: int, question: dict[str, str]) -> int:
        messages = self._messages(self.turns[2 * n_dropped :], question)
        return len(self.session.chat_tokens(messages, think=self.think))

    def _complete(self, generation: Generation) -> Generator[str, None, None]:
        yield ""
        yield from generation

    def _converse(self, generation: Generation, question: dict[str, str]) -> Generator[str, None, None]:
        said: list[str] = []
        try:
            yield ""
            for piece in generation:
                said.append(piece)
                yield piece
        finally:
            # A question without any answer isn't kept, because templates expect questions and answers in pairs.
            if said or generation.finish != "interrupted":
                self.turns += [question, {"role": "assistant", "content": "".join(said)}]

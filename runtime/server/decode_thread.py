"""The one thread that calls llama.cpp: it gives each model's slots a batch in turn, and takes requests meanwhile.

One thread for all models, since two that decode at once would wait for each other's cores.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from tritgguf.runtime.server.batcher import Batcher
from tritgguf.runtime.server.errors import RequestError, shutting_down
from tritgguf.runtime.server.job import Job

T = TypeVar("T")


class DecodeThread:
    """Runs the batchers; start() it, and stop() it before their contexts are closed."""

    def __init__(self, batchers: Sequence[Batcher], *, max_waiting: int) -> None:
        self._batchers = batchers
        self._max_waiting = max_waiting
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    @property
    def is_stopping(self) -> bool:
        return self._stopping

    def start(self) -> None:
        self._thread.start()

    def submit(self, batcher: Batcher, job: Job) -> None:
        """Queue a job; RequestError if too many wait already, or if the server stops. From any thread."""
        with self._wake:
            if self._stopping:
                raise shutting_down()
            if len(batcher.waiting) >= batcher.n_free:
                self._check_room(batcher)
            batcher.waiting.append(job)
            self._wake.notify()

    @contextmanager
    def embedding(self, batcher: Batcher) -> Iterator[None]:
        """Count a request for embeddings, of which one is worked on and others wait; RequestError as submit()."""
        with self._wake:
            if batcher.n_embedding:
                self._check_room(batcher)
            batcher.n_embedding += 1
        try:
            yield
        finally:
            with self._wake:
                batcher.n_embedding -= 1

    def _check_room(self, batcher: Batcher) -> None:
        if batcher.n_waiting >= self._max_waiting:
            raise RequestError(
                f"the server is busy: {self._max_waiting} requests wait already; try again later",
                status=503,
                code="queue_full",
            )

    def call(self, batcher: Batcher, function: Callable[[], T]) -> Future[T]:
        """Run a function on this thread, between two batches."""
        future: Future[T] = Future()
        with self._wake:
            if self._stopping:
                raise shutting_down()
            batcher.calls.append((future, function))
            self._wake.notify()
        return future

    def ask_to_stop(self) -> None:
        """End all requests with an error and then the thread; returns at once. From a signal handler too."""
        # Not under the lock, which the interrupted code may hold; the waiting thread looks again within a second.
        self._stopping = True

    def stop(self) -> None:
        """Stop and wait for the end."""
        self.ask_to_stop()
        if self._thread.is_alive():
            with self._wake:
                self._wake.notify()
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            with self._wake:
                while not self._stopping and not any(batcher.has_work for batcher in self._batchers):
                    self._wake.wait(timeout=0.2)
            for batcher in self._batchers:
                self._step(batcher)
        with self._wake:
            for batcher in self._batchers:
                batcher.fail_all(shutting_down())

    def _step(self, batcher: Batcher) -> None:
        try:
            batcher.step(lambda: self._stopping)
        except Exception as error:  # a bug, but one request's bug must not end the others' server
            if os.environ.get("TRITGGUF_DEBUG"):
                traceback.print_exc(file=sys.stderr)
            batcher.fail_all(RequestError(f"internal error ({type(error).__name__})", status=500))

"""The products' library called from Python, with a team of Python's threads."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.paths import ROOT

NATIVE = ROOT / "runtime" / "engine" / "kernels" / "native"
IN_LLAMA_CPP = ("accel", "experts", "hook", "nodes")  # what puts the products into it, compiled with its headers
# Of all processors: what isn't for the one that they are compiled for is empty.
SOURCES = sorted(path for path in NATIVE.glob("*.cpp") if path.stem not in IN_LLAMA_CPP)
F16, Q8_0, Q2_K, Q6_K, TQ1_0, TQ2_0, Q2_0 = 1, 8, 10, 14, 34, 35, 42
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BARRIER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
CHUNK_SET = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
CHUNK_ADD = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class Team(ctypes.Structure):
    _fields_ = (
        ("thread", ctypes.c_int),
        ("n_threads", ctypes.c_int),
        ("barrier", BARRIER),
        ("chunk_set", CHUNK_SET),
        ("chunk_add", CHUNK_ADD),
        ("context", ctypes.c_void_p),
    )


class Job(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("n_inputs", ctypes.c_int64),
        ("n_rows", ctypes.c_int64),
        ("n_columns", ctypes.c_int64),
        ("weights", ctypes.c_void_p),
        ("row_bytes", ctypes.c_size_t),
        ("activations", ctypes.c_void_p),
        ("activation_bytes", ctypes.c_size_t),
        ("results", ctypes.c_void_p),
        ("result_bytes", ctypes.c_size_t),
        ("work", ctypes.c_void_p),
    )


class Counter:
    """The team's counter of work items, and where its threads meet."""

    def __init__(self, n_threads: int) -> None:
        self._value = 0
        self._lock = threading.Lock()
        self._barrier = threading.Barrier(n_threads)
        self.functions = (BARRIER(self._wait), CHUNK_SET(self._set), CHUNK_ADD(self._add))

    def _wait(self, _context: int) -> None:
        self._barrier.wait()

    def _set(self, _context: int, value: int) -> None:
        self._value = value

    def _add(self, _context: int, value: int) -> int:
        with self._lock:
            before = self._value
            self._value += value
        return before


class ProductLibrary:
    """The library with one instruction set, or with the one that it chose."""

    def __init__(self, path: Path, instructions: str | None = None) -> None:
        self._path, self._library = path, (library := ctypes.CDLL(str(path)))
        integer, long, size = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
        for name, result, arguments in (
            ("product_instructions", ctypes.c_char_p, ()),
            ("product_use", ctypes.c_bool, (ctypes.c_char_p,)),
            ("product_supports", ctypes.c_bool, (integer, long)),
            ("product_work_bytes", size, (integer, long, long, integer)),
            ("product_run", None, (ctypes.POINTER(Job), ctypes.POINTER(Team))),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.instructions = instructions or library.product_instructions().decode()
        assert library.product_use(self.instructions.encode())

    def has(self, instructions: str) -> bool:
        return bool(self._library.product_use(instructions.encode()))

    def using(self, instructions: str) -> ProductLibrary:
        return ProductLibrary(self._path, instructions)

    def supports(self, type_number: int, n_inputs: int) -> bool:
        assert self._library.product_use(self.instructions.encode())
        return bool(self._library.product_supports(type_number, n_inputs))

    def multiply(
        self, type_number: int, weights: Bytes, activations: Floats, n_threads: int = 1, *, work_offset: int = 0
    ) -> Floats:
        """Return the results, float32 (n_columns, n_rows), of weights (n_rows, row bytes) and (n_columns, n_inputs)."""
        call = self.prepare(type_number, weights, activations, n_threads, work_offset=work_offset)
        return call()

    def prepare(
        self, type_number: int, weights: Bytes, activations: Floats, n_threads: int = 1, *, work_offset: int = 0
    ) -> Callable[[], Floats]:
        """Return what computes the results, anew at each call, and checks the bytes around them and the work space."""
        assert weights.strides[1] == 1
        assert activations.strides[1] == 4
        (n_columns, n_inputs), n_rows = activations.shape, len(weights)
        results = np.full((n_columns + 1, n_rows + 1), 12345, np.float32)
        assert self._library.product_use(self.instructions.encode())
        n_bytes = self._library.product_work_bytes(type_number, n_inputs, n_columns, n_threads)
        work = np.full(n_bytes + work_offset + 64, 0xA5, np.uint8)  # floats of it are huge, not zero
        job = Job(
            type_number, n_inputs, n_rows, n_columns,
            weights.ctypes.data, weights.strides[0], activations.ctypes.data, activations.strides[0],
            results.ctypes.data, results.strides[0], work.ctypes.data + work_offset,
        )  # fmt: skip

        def call() -> Floats:
            self._run(job, n_threads)
            assert (work[:work_offset] == 0xA5).all()
            assert (work[n_bytes + work_offset :] == 0xA5).all()
            assert (results[:, -1] == 12345).all()
            assert (results[-1] == 12345).all()
            assert weights is not None
            assert activations is not None
            return results[:-1, :-1].copy()

        return call

    def _run(self, job: Job, n_threads: int) -> None:
        counter = Counter(n_threads)
        teams = [Team(thread, n_threads, *counter.functions, None) for thread in range(n_threads)]
        in_threads([lambda team=team: self._library.product_run(job, team) for team in teams])


def in_threads(calls: Sequence[Callable[[], Any]]) -> None:
    """Call each in a thread of its own, the first one in this thread."""
    others = [threading.Thread(target=call) for call in calls[1:]]
    for thread in others:
        thread.start()
    calls[0]()
    for thread in others:
        thread.join()

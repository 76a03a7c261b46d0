"""Read the pickle of a PyTorch state dict: a machine that knows tensors and nothing more.

A pickle is a program for a stack machine that can name any function of any module and call it. This machine imports and
calls nothing: it knows the opcodes that torch.save uses for a state dict, and the names in pickle_globals.py, each of
which stands for a check there. Anything else is refused by its name before it does anything. A pickle's length, the
number of its opcodes, the size of its numbers and the kind of its keys are bounded; nothing compares, hashes or walks
nested values, which could take exponential time.

The opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py. What torch.save writes:
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py and https://github.com/pytorch/pytorch/blob/main/torch/_utils.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeAlias

from tritgguf.converter.checkpoint.pickle_globals import GLOBALS, Function, PickledTensorError, Storage, StorageType
from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import SourceError

MAX_BYTES = 16_000_000  # some 60,000 tensors
MAX_OPCODES = 2_000_000
PROTOCOLS = range(2, 6)  # torch.save's is 2 unless it is told another


def read_pickle(file: str, code: bytes) -> object:
    """Return what the pickle `code` of the file named `file` builds: dicts, lists, tuples, plain values and tensors.

    Raises SourceError where it is damaged, or names or does anything that a state dict doesn't need.
    """
    if len(code) > MAX_BYTES:
        raise SourceError(f"{file}: data.pkl has {len(code)} bytes; expected at most {MAX_BYTES}: it is damaged")
    return _Machine(file, code).run()


class _Machine:
    """Runs one pickle; `stack` holds what was built since the last mark, `below` the stacks under the marks."""

    def __init__(self, file: str, code: bytes) -> None:
        self.file, self.code, self.at = file, code, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self) -> object:
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)
            if opcode == b".":
                return self.pop()
            action = _OPCODES.get(opcode)
            if action is None:
                self.refuse(f"the opcode {shown(opcode)}, which torch.save doesn't use for a state dict")
            action(self)
        raise SourceError(f"{self.file}: data.pkl has more than {MAX_OPCODES} opcodes: it is damaged")

    def refuse(self, what: str) -> NoReturn:
        raise SourceError(
            f"{self.file}: data.pkl holds {what}; expected a state dict: nothing of it was run. "
            "Fetch the file again, or save the tensors alone: torch.save(model.state_dict(), file)"
        )

    def take(self, n_bytes: int) -> bytes:
        taken = self.code[self.at : self.at + n_bytes]
        if len(taken) < n_bytes:
            raise SourceError(f"{self.file}: data.pkl is cut off; fetch the file again")
        self.at += n_bytes
        return taken

    def number(self, layout: str) -> Any:  # noqa: ANN401 - an int or a float
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.code.find(b"\n", self.at)
        text = self.take((end if end >= 0 else len(self.code)) + 1 - self.at)[:-1]
        return text.decode("utf-8", "backslashreplace")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:  # noqa: ANN401 - whatever the pickle built
        if not self.stack:
            self.refuse("an opcode without a value to work on")
        return self.stack.pop()

    def top(self, kind: type) -> Any:  # noqa: ANN401
        if not self.stack or type(self.stack[-1]) is not kind:
            self.refuse(f"an opcode for a {kind.__name__} where there is none")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.below:
            self.refuse("an opcode without the mark that it needs")
        values, self.stack = self.stack, self.below.pop()
        return values

    def set_items(self, items: list[Any]) -> None:
        into = self.top(dict)
        if len(items) % 2:
            self.refuse("a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):  # hashing a nested key could take exponential time
                self.refuse(f"a dict with a key that is a {type(key).__name__}")
            if key in into:
                self.refuse(f"the key {shown(key)} twice")
            into[key] = value

    def find(self, module: object, function: object) -> None:
        name = f"{module}.{function}" if isinstance(module, str) and isinstance(function, str) else "no name"
        if name not in GLOBALS:
            raise SourceError(
                f"{self.file} names {shown(name)[1:-1]}, which no state dict of plain tensors needs: nothing of it was "
                "run. If you trust the file, load it with torch and save the tensors alone: "
                "torch.save(model.state_dict(), file)"
            )
        self.push(GLOBALS[name])

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not Function or type(arguments) is not tuple:
            self.refuse("a call of something that isn't a function")
        try:
            self.push(function.build(arguments))
        except PickledTensorError as error:
            self.refuse(f"a tensor with {error}")
        except ValueError:  # more or fewer arguments than the function takes
            self.refuse(f"a tensor made of {len(arguments)} arguments")

    def load_storage(self) -> None:
        match self.pop():
            case ("storage", StorageType(dtype), str(key), str(_), n_items) if type(n_items) is int and n_items >= 0:
                storage = Storage(key, dtype, n_items)
            case _:
                self.refuse("a reference to something that isn't a storage")
        if self.storages.setdefault(key, storage) != storage:
            self.refuse(f"the storage {shown(key)} with two types or sizes")
        self.push(storage)

    def set_state(self) -> None:
        if type(self.pop()) is not dict:  # a state dict's _metadata: versions of modules
            self.refuse("a state that isn't a dict")
        self.top(dict)

    def remember(self, index: int) -> None:
        if not self.stack:
            self.refuse("an opcode without a value to work on")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            self.refuse(f"a reference to the value {index}, which isn't there")
        self.push(self.memo[index])

    def text(self, length: str) -> None:
        try:
            self.push(self.take(self.number(length)).decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            self.refuse("a text that isn't UTF-8")

    def long(self) -> None:
        n_bytes = self.number("<B")
        if n_bytes > 8:
            self.refuse(f"a number of {n_bytes} bytes")
        self.push(int.from_bytes(self.take(n_bytes), "little", signed=True))

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def tuple_of(self, n_items: int) -> None:
        items = [self.pop() for _ in range(n_items)]
        self.push(tuple(reversed(items)))

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def protocol(self) -> None:
        if (found := self.number("<B")) not in PROTOCOLS:
            self.refuse(f"pickle protocol {found}")


def _item(machine: _Machine) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _global(machine: _Machine) -> None:
    module = machine.line()
    machine.find(module, machine.line())


def _global_on_stack(machine: _Machine) -> None:
    function = machine.pop()
    machine.find(machine.pop(), function)


_Action: TypeAlias = Callable[[_Machine], None]
_OPCODES: Mapping[bytes, _Action] = {
    b"\x80": _Machine.protocol,
    b"(": _Machine.mark,
    b")": lambda machine: machine.push(()),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push({}),
    b"t": lambda machine: machine.push(tuple(machine.since_mark())),
    b"\x85": lambda machine: machine.tuple_of(1),
    b"\x86": lambda machine: machine.tuple_of(2),
    b"\x87": lambda machine: machine.tuple_of(3),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b"J": lambda machine: machine.push(machine.number("<i")),
    b"K": lambda machine: machine.push(machine.number("<B")),
    b"M": lambda machine: machine.push(machine.number("<H")),
    b"G": lambda machine: machine.push(machine.number(">d")),
    b"\x8a": _Machine.long,
    b"X": lambda machine: machine.text("<I"),
    b"\x8c": lambda machine: machine.text("<B"),
    b"c": _global,
    b"\x93": _global_on_stack,
    b"R": _Machine.call,
    b"b": _Machine.set_state,
    b"Q": _Machine.load_storage,
    b"s": _item,
    b"u": lambda machine: machine.set_items(machine.since_mark()),
    b"a": lambda machine: machine.append([machine.pop()]),
    b"e": lambda machine: machine.append(machine.since_mark()),
    b"q": lambda machine: machine.remember(machine.number("<B")),
    b"r": lambda machine: machine.remember(machine.number("<I")),
    b"\x94": lambda machine: machine.remember(len(machine.memo)),
    b"\x95": lambda machine: machine.number("<Q"),  # the length of a frame, for buffering
    b"h": lambda machine: machine.recall(machine.number("<B")),
    b"j": lambda machine: machine.recall(machine.number("<I")),
}

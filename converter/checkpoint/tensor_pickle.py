"""Read the pickle of a PyTorch state dict: a machine that knows tensors and nothing more.

A pickle is a program for a stack machine that can name any function of any module and call it. This machine imports and
calls nothing: it knows the opcodes that torch.save uses for a state dict, and the names in `GLOBALS`, each of which
stands for a check here. Anything else is refused by its name before it does anything. A pickle's length, the number of
its opcodes, the size of its numbers and the kind of its keys are bounded; nothing compares, hashes or walks nested
values, which could take exponential time.

The opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py. What torch.save writes:
https://github.com/pytorch/pytorch/blob/main/torch/serialization.py and https://github.com/pytorch/pytorch/blob/main/torch/_utils.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeAlias

from tritgguf.converter.core.settings import shown
from tritgguf.converter.errors import SourceError

MAX_BYTES = 16_000_000  # some 60,000 tensors
MAX_OPCODES = 2_000_000
MAX_DIMENSIONS = 8
PROTOCOLS = range(2, 6)  # torch.save's is 2 unless it is told another


class Storage(NamedTuple):
    """The numbers behind one or more tensors; `dtype` is None where each tensor says it, and `n_items` are bytes."""

    key: str
    dtype: str | None
    n_items: int


class PickledTensor(NamedTuple):
    """A tensor as a view of a storage; `offset` and `strides` count items."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StorageType(NamedTuple):
    dtype: str | None


class _Dtype(NamedTuple):
    dtype: str


class _TensorError(ValueError):
    """What is wrong with a tensor."""


class _Function(NamedTuple):
    """Stands for a function of torch: `build` makes what it would return; it raises ValueError or _TensorError."""

    build: Callable[[tuple[Any, ...]], object]


def _ordered_dict(arguments: tuple[Any, ...]) -> dict[str, Any]:
    if arguments:
        raise _TensorError("an OrderedDict made of something")
    return {}


def _tensor_v2(arguments: tuple[Any, ...]) -> PickledTensor:
    storage, offset, shape, strides, _, hooks, *metadata = arguments
    return _tensor(storage, getattr(storage, "dtype", None), offset, shape, strides, hooks, metadata)


def _tensor_v3(arguments: tuple[Any, ...]) -> PickledTensor:
    storage, offset, shape, strides, _, hooks, dtype, *metadata = arguments
    if type(dtype) is not _Dtype:
        raise _TensorError("a dtype that is none")
    return _tensor(storage, dtype.dtype, offset, shape, strides, hooks, metadata)


def _tensor(
    storage: object, dtype: str | None, offset: object, shape: object, strides: object, hooks: object, metadata: object
) -> PickledTensor:
    if type(storage) is not Storage or dtype is None:
        raise _TensorError("a storage that is none")
    if storage.dtype not in (None, dtype):
        raise _TensorError(f"a storage of {storage.dtype} seen as {dtype}")
    if hooks != {} or metadata not in ([], [None], [{}]):
        raise _TensorError("hooks or metadata, which change its values")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise _TensorError("a shape that doesn't fit its strides")
    if len(shape) > MAX_DIMENSIONS:
        raise _TensorError(f"{len(shape)} dimensions")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _TensorError("an offset, a shape or strides that aren't whole numbers from zero up")
    return PickledTensor(storage, dtype, numbers[0], shape, strides)


def _parameter(arguments: tuple[Any, ...]) -> PickledTensor:
    tensor, _, hooks = arguments
    if type(tensor) is not PickledTensor or hooks != {}:
        raise _TensorError("a parameter that is no tensor")
    return tensor


_TYPED = {
    "Float": "F32",
    "Half": "F16",
    "BFloat16": "BF16",
    "Double": "F64",
    "Byte": "U8",
    "Char": "I8",
    "Short": "I16",
    "Int": "I32",
    "Long": "I64",
    "Bool": "BOOL",
}
_DTYPES = {
    **{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "bool": "BOOL"},
    **{"uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"},
    **{"uint16": "U16", "uint32": "U32", "uint64": "U64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"},
}
GLOBALS: Mapping[str, object] = {
    "collections.OrderedDict": _Function(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": _Function(_tensor_v3),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    **{f"torch.{name}Storage": _StorageType(dtype) for name, dtype in _TYPED.items()},
    "torch.storage.UntypedStorage": _StorageType(None),
    **{f"torch.{name}": _Dtype(dtype) for name, dtype in _DTYPES.items()},
}


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
        if type(function) is not _Function or type(arguments) is not tuple:
            self.refuse("a call of something that isn't a function")
        try:
            self.push(function.build(arguments))
        except _TensorError as error:
            self.refuse(f"a tensor with {error}")
        except ValueError:  # more or fewer arguments than the function takes
            self.refuse(f"a tensor made of {len(arguments)} arguments")

    def load_storage(self) -> None:
        match self.pop():
            case ("storage", _StorageType(dtype), str(key), str(_), n_items) if type(n_items) is int and n_items >= 0:
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

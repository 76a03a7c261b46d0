"""Run BitNet b1.58 2B-4T on a stock llama.cpp, whose graph `bitnet` differs from it in the FFN's activation only.

The model (https://arxiv.org/abs/2504.12285) computes relu(gate)² · up; the graph computes silu(gate) · up, as one GLU
node per layer. llama.cpp calls an evaluation callback for every node of a graph: once before the node, to ask whether
the callback needs its data, and if so again after it is computed. The callback here asks for the GLU nodes and replaces
their output with the right product. Gate and up still hold their values then: ggml never reuses the memory of a GLU
node's inputs for its output, and the callback checks that it didn't.

Files of this model name an architecture that stock llama.cpp doesn't know, so that no other program computes the wrong
activation. They have the same keys under the stock name too, and are loaded here by overriding the architecture.

The callback reads ggml's structures, which may change with llama.cpp's version. So check_layout() compares them with
nodes that the library itself makes, and after each evaluation Relu2.check() compares the number of rewritten nodes with
the number of layers. Any difference is an error before logits are used.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tritgguf.converter.core import kernels
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions, InitParams
from tritgguf.runtime.engine.placement import Placement

ARCHITECTURE = "bitnet-b1.58"
STOCK_ARCHITECTURE = "bitnet"
KNOWN_VERSION = "0.3.36"  # of llama-cpp-python, whose ggml has the structure below

# Indices into the callback's state, an array of four int64.
GLU_OP, SWIGLU, N_REWRITTEN, N_REFUSED = range(4)
State: TypeAlias = NDArray[np.int64]
Callback: TypeAlias = Callable[[int, int, int], int]  # (tensor, is it the question, state) → whether to continue


class Tensor(ctypes.Structure):
    """ggml's node of a graph, struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int32),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # number of elements
        ("nb", ctypes.c_size_t * 4),  # strides in bytes
        ("op", ctypes.c_int32),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


# The callback reads a node as 64-bit words; these are the indices of the fields' first words.
N_WORDS = ctypes.sizeof(Tensor) // 8
NE, NB, OP, SRC, DATA, NAME = (getattr(Tensor, name).offset // 8 for name in ("ne", "nb", "op", "src", "data", "name"))
_F32 = 0  # enum ggml_type
_OP_OFFSET = Tensor.op.offset
_OBJECT_BYTES = 32  # what ggml_tensor_overhead() counts beside the structure
_FFN_GATE = int.from_bytes(b"ffn_gate", "little")
_FFN_UP = int.from_bytes(b"ffn_up", "little")


def is_refused(node: Sequence[int], gate: Sequence[int], up: Sequence[int], swiglu: int) -> bool:
    """Return whether a GLU node isn't silu(ffn_gate) · ffn_up over whole F32 tensors; all three as 64-bit words.

    Where the node lacks a source, the caller passes the node itself. The op word is (op, first op parameter).
    """
    if node[OP] >> 32 != swiglu or gate[NAME] != _FFN_GATE or up[NAME] & 0xFFFFFFFFFFFF != _FFN_UP:
        return True
    if node[DATA] == 0 or node[DATA] == gate[DATA] or node[DATA] == up[DATA]:
        return True
    for tensor in (node, gate, up):
        stride = 4
        if tensor[0] & 0xFFFFFFFF != _F32 or tensor[DATA] == 0:
            return True
        for axis in range(4):
            if tensor[NE + axis] != node[NE + axis] or tensor[NB + axis] != stride:
                return True
            stride *= tensor[NE + axis]
    return False


def plain_callback(state: State) -> Callback:
    """Return the callback in Python, which costs about a microsecond for each of a graph's thousand nodes."""
    glu_op, swiglu = int(state[GLU_OP]), int(state[SWIGLU])
    op_at, words_at = ctypes.c_int32.from_address, (ctypes.c_int64 * N_WORDS).from_address

    def floats(address: int, n_values: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array((ctypes.c_float * n_values).from_address(address))

    def callback(address: int, is_question: int, _state: int) -> int:
        if is_question:
            return op_at(address + _OP_OFFSET).value == glu_op
        node = words_at(address)[:]
        gate, up = (words_at(source)[:] if source else node for source in node[SRC : SRC + 2])
        if is_refused(node, gate, up, swiglu):
            state[N_REFUSED] += 1
            return 1
        n_values = math.prod(node[NE : NE + 4])
        out = floats(node[DATA], n_values)
        np.maximum(floats(gate[DATA], n_values), 0, out=out)
        np.multiply(out, out, out=out)
        np.multiply(out, floats(up[DATA], n_values), out=out)
        state[N_REWRITTEN] += 1
        return 1

    return callback


def compiled_callback() -> int | None:
    """Return the address of the same callback in C (native/relu2.c), or None where it wasn't built."""
    library = kernels.library() if kernels.mode() != "numpy" else None
    if library is None or library.relu2_tensor_bytes() != ctypes.sizeof(Tensor):
        return None
    return ctypes.cast(library.relu2, ctypes.c_void_p).value


class Relu2:
    """The evaluation callback of one context, which it must outlive; in C where that was built.

    `library` is ggml, `callback_type` the ctypes type of the callback.
    """

    def __init__(self, library: ctypes.CDLL, callback_type: Callable[[int | Callback], object]) -> None:
        self.state: State = np.zeros(4, np.int64)
        self.state[[GLU_OP, SWIGLU]] = check_layout(library)
        address = compiled_callback()
        self.is_compiled = address is not None
        self.callback = callback_type(plain_callback(self.state) if address is None else address)

    @property
    def user_data(self) -> int:
        """The address that the library passes to the callback."""
        return self.state.ctypes.data

    def start(self) -> None:
        """Reset the counts, before an evaluation."""
        self.state[[N_REWRITTEN, N_REFUSED]] = 0

    def check(self, n_layers: int) -> None:
        """Raise EngineError, after an evaluation, unless every layer's activation and nothing else was rewritten."""
        n_rewritten, n_refused = int(self.state[N_REWRITTEN]), int(self.state[N_REFUSED])
        if (n_rewritten, n_refused) != (n_layers, 0):
            raise EngineError(
                f"the activation was rewritten in {n_rewritten} of {n_layers} layers, {n_refused} nodes are of another "
                f"kind: this llama.cpp's graph isn't the one known; install llama-cpp-python {KNOWN_VERSION}"
            )


def check_request(path: Path, values: Mapping[str, object], placement: Placement) -> None:
    """Raise EngineError if more than the CPU is asked for, or the header's `values` under both architectures differ."""
    if placement.asks_for_devices:
        raise EngineError(
            f"{path}: {ARCHITECTURE}'s activation is computed on this machine's CPU; leave --gpu-layers, --main-gpu, "
            "--tensor-split and --rpc out"
        )
    ours, stock = (
        {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        for prefix in (f"{ARCHITECTURE}.", f"{STOCK_ARCHITECTURE}.")
    )
    for name in sorted(ours.keys() | stock.keys()):
        if ours.get(name) != stock.get(name):
            raise EngineError(
                f"{path}: {ARCHITECTURE}.{name} is {ours.get(name, 'missing')}, {STOCK_ARCHITECTURE}.{name} is "
                f"{stock.get(name, 'missing')}, expected the same; convert the original checkpoint again"
            )


def check_layout(library: ctypes.CDLL) -> tuple[int, int]:
    """Return ggml's numbers of the GLU operation and of its kind SWIGLU; EngineError if its structures differ."""
    try:
        codes = _compare_with_own_nodes(library)
    except AttributeError:  # the library lacks a function
        codes = None
    if codes is None:
        raise EngineError(
            "this llama-cpp-python's tensor layout isn't the one known, and this model's activation can't be computed; "
            f"install llama-cpp-python {KNOWN_VERSION}"
        )
    return codes


def _compare_with_own_nodes(library: ctypes.CDLL) -> tuple[int, int] | None:
    """Read nodes that ggml makes, both as Tensor and by ggml's functions; None where the two differ."""
    pointer, text, integer, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    function = GgmlFunctions(library).function
    if function("ggml_tensor_overhead", size)() != ctypes.sizeof(Tensor) + _OBJECT_BYTES:
        return None
    new = function("ggml_new_tensor_2d", pointer, pointer, integer, ctypes.c_int64, ctypes.c_int64)
    described = function("ggml_op_desc", text, pointer)
    kind = function("ggml_get_glu_op", integer, pointer)
    context = function("ggml_init", pointer, InitParams)(InitParams(1 << 16, None, False))
    try:
        gate, up = new(context, _F32, 5, 3), new(context, _F32, 5, 3)
        swiglu = function("ggml_swiglu_split", pointer, pointer, pointer, pointer)(context, gate, up)
        reglu = function("ggml_reglu_split", pointer, pointer, pointer, pointer)(context, gate, up)
        function("ggml_set_name", pointer, pointer, text)(swiglu, b"ffn_sub_out-7")
        node, other = Tensor.from_address(swiglu), Tensor.from_address(reglu)
        known = (_F32, [5, 3, 1, 1], [4, 20, 60, 60], [gate, up, *[None] * 8], b"ffn_sub_out-7")
        same = (node.type, [*node.ne], [*node.nb], [*node.src], node.name) == known
        same &= node.data is not None and node.data == function("ggml_get_data", pointer, pointer)(swiglu)
        kinds = (kind(swiglu), kind(reglu))
        same &= kinds[0] != kinds[1] and kinds == (node.op_params[0], other.op_params[0])
        codes = (node.op, kinds[0])
        same &= node.op == other.op and described(swiglu) == b"SWIGLU"
        node.op = 0  # the library's function must see this change
        same &= described(swiglu) == b"NONE"
        return codes if same else None
    finally:
        function("ggml_free", None, pointer)(context)

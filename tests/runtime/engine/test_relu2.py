"""BitNet 2B-4T's graph on the stock library: logits against transformers' BitNetForCausalLM, and what is refused."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from numpy.typing import NDArray

import tritgguf.runtime
from tests import bitnet_model as bitnet
from tests import paths
from tests.ctrl_c import ctrl_c_in_callback, evaluate_under_ctrl_c
from tritgguf.converter.errors import EngineError
from tritgguf.runtime.chat.session import Session
from tritgguf.runtime.engine import backend, relu2
from tritgguf.runtime.engine.backend import Model
from tritgguf.runtime.engine.context import Context, Row
from tritgguf.runtime.engine.evaluator import Evaluator
from tritgguf.runtime.engine.token_ids import token_ids

GOLDEN = paths.GOLDEN / "bitnet.npz"
TYPES = ("f32", "f16", "tq2_0", "tq1_0")
# With attention in float32: F16 weights round the activations to F16, ternary ones to 8 bits. Attention as it is by
# default, with keys, values and flash attention in F16, takes 2.5e-3 at one token at a time, whatever the weights.
RELATIVE_ERROR = {"f32": 2e-4, "f16": 1e-3, "tq2_0": 5e-2, "tq1_0": 5e-2}
DEFAULT_ATTENTION_ERROR = {**RELATIVE_ERROR, "f32": 4e-3, "f16": 4e-3}
IDS = bitnet.token_ids()

Floats = NDArray[np.float32]
Product = Callable[[Floats, Floats], Floats]


@pytest.fixture(scope="module")
def expected() -> Floats:
    with np.load(GOLDEN) as file:
        logits: Floats = file["logits_int16"] * file["logits_step"]
    return logits


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the file of a tensor type, written once."""
    folder = tmp_path_factory.mktemp("bitnet")

    def file(type_name: str) -> Path:
        path = folder / f"{type_name}.gguf"
        return path if path.exists() else bitnet.write_gguf(path, type_name)

    return file


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the test with each of the two callbacks."""
    if request.param == "plain":
        monkeypatch.setenv("TRITGGUF_KERNELS", "numpy")
    return str(request.param)


@contextmanager
def f32_session(path: Path) -> Iterator[Session]:
    """A session whose attention rounds nothing, so that all of the error is the FFN's and the weights'.

    One thread, here and below: several spin at every node of the graph, for minutes where the cores are taken.
    """
    model = Model(path)
    context = Context(model, n_ctx=512, n_threads=1, n_batch=512, f32_attention=True)
    with Session(Evaluator(model, context, 512), None) as session:
        yield session


def relative_error(found: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def last_logits(session: Session, tokens: list[int], n_cached: int) -> Floats:
    assert session.evaluate(tokens) == n_cached
    return session.context.logits()[-1].copy()


def test_the_golden_was_recorded_on_these_weights():
    with np.load(GOLDEN) as file:
        assert str(file["weights_sha256"]) == bitnet.digest(), "run tests.golden.record_bitnet again"


# --- the right logits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_name", TYPES)
def test_logits_are_those_of_transformers(type_name, way, model_file, expected):
    limit = RELATIVE_ERROR[type_name]
    with f32_session(model_file(type_name)) as session:
        assert session.context.relu2.is_compiled == (way == "compiled")
        one_by_one = [last_logits(session, IDS[: n + 1], n_cached=n) for n in range(200)]
        assert relative_error(np.array(one_by_one), expected) <= limit
        assert relative_error(session.logits(IDS), expected) <= limit
        sizes, at_once = (200, 173, 131, 64, 2), []
        for n_tokens in sizes:
            last_logits(session, [(IDS[0] + 1) % bitnet.VOCAB, *IDS], n_cached=0)
            at_once.append(last_logits(session, IDS[:n_tokens], n_cached=0))  # another beginning: nothing is of use
        last_logits(session, [*IDS[:150], 7, 8, 9], n_cached=2)
        at_once.append(last_logits(session, IDS, n_cached=150))
        assert relative_error(np.array(at_once), expected[[*(n - 1 for n in sizes), 199]]) <= limit


@pytest.mark.parametrize("type_name", TYPES)
def test_logits_of_a_session_as_users_open_it(type_name, model_file, expected):
    with tritgguf.runtime.open(model_file(type_name), n_threads=2) as session:
        found = session.logits(IDS)
        assert relative_error(found, expected) <= RELATIVE_ERROR[type_name]
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.93
    with tritgguf.runtime.open(model_file(type_name), n_threads=1) as session:
        limit = DEFAULT_ATTENTION_ERROR[type_name]
        one_by_one = [last_logits(session, IDS[: n + 1], n_cached=n) for n in range(200)]
        assert relative_error(np.array(one_by_one), expected) <= limit
        last_logits(session, [IDS[1]], n_cached=0)
        assert relative_error(last_logits(session, IDS, n_cached=0), expected[199]) <= limit


def test_scales_in_tensors_of_their_own_are_applied_before_the_activation(tmp_path, expected):
    path = bitnet.write_gguf(tmp_path / "scales.gguf", "f32", scale_tensors=True)
    with f32_session(path) as session:
        assert relative_error(session.logits(IDS), expected) <= RELATIVE_ERROR["f32"]


def test_both_callbacks_give_the_same_bits(model_file, monkeypatch):
    def logits() -> tuple[bool, Floats]:
        with tritgguf.runtime.open(model_file("tq2_0"), n_threads=1) as session:
            return session.context.relu2.is_compiled, session.logits(IDS)

    compiled, plain = logits(), (monkeypatch.setenv("TRITGGUF_KERNELS", "numpy"), logits())[1]
    assert (compiled[0], plain[0]) == (True, False)
    assert np.array_equal(compiled[1], plain[1])


def test_generation_and_chat(model_file):
    messages = [{"role": "user", "content": "the other thing"}]
    with tritgguf.runtime.open(model_file("f32"), n_threads=1) as session:
        prompt = session.chat_tokens(messages)
        text = "".join(session.chat(messages, temperature=0, max_tokens=8))
        assert session.stats.n_prompt == len(prompt)
        ids = list(prompt)
        for _ in range(session.stats.n_generated):
            ids.append(int(session.logits(ids)[-1].argmax()))
        assert session.detokenize(ids[len(prompt) :]) == text
        assert "".join(session.generate(prompt, temperature=0, max_tokens=8)) == text


def test_the_chat_command_answers(model_file):
    program = [sys.executable, "-m", "tritgguf", "chat", str(model_file("tq2_0"))]
    options = ["--prompt", "the other thing", "--temperature", "0", "--max-tokens", "6", "--threads", "1"]
    run = subprocess.run([*program, *options], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    assert run.returncode == 0, run.stderr
    with tritgguf.runtime.open(model_file("tq2_0"), n_threads=1) as session:
        messages = [{"role": "user", "content": "the other thing"}]
        answer = "".join(session.chat(messages, temperature=0, max_tokens=6))
    assert run.stdout.decode().strip() == answer.strip()


def test_token_ids_need_the_vocabulary_only(model_file, tmp_path):
    path = model_file("tq1_0")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(path.read_bytes()[:-100_000])
    with tritgguf.runtime.open(path) as session:
        assert token_ids(cut, ["the other <|im_end|>"]) == [session.tokenize("the other <|im_end|>")]


def test_two_sessions_at_once(model_file, expected):
    with f32_session(model_file("f32")) as one, f32_session(model_file("f32")) as other:
        for n_tokens in (1, 3, 100, 200):
            for session in (one, other):
                session.evaluate(IDS[:n_tokens])
                assert relative_error(session.context.logits()[-1], expected[n_tokens - 1]) <= RELATIVE_ERROR["f32"]


# --- never silently wrong --------------------------------------------------------------------------------------------


def test_the_stock_library_does_not_load_the_file(model_file, capfd):
    with pytest.raises(ValueError, match="Failed to load model"):
        llama_cpp.Llama(str(model_file("f32")), verbose=False)


def test_without_the_callback_the_logits_are_wrong(model_file, expected):
    with Model(model_file("f32")) as model:
        model.needs_relu2 = False  # the architecture is overridden already
        context = Context(model, n_ctx=512, n_threads=1, n_batch=512, f32_attention=True)
        context.decode(IDS, 0)
        assert relative_error(context.logits()[-1], expected[199]) > 0.2
        context.close()


def silu(values: Floats) -> Floats:
    return values / (1 + np.exp(-values))


def relu(values: Floats) -> Floats:
    return np.maximum(values, 0)


RIGHT = {"relu²": lambda gate, up: relu(gate) ** 2 * up}
WRONG: dict[str, Product] = {
    "relu": lambda gate, up: relu(gate) * up,
    "square": lambda gate, up: gate**2 * up,
    "up squared": lambda gate, up: relu(gate) * up**2,
    "swapped": lambda gate, up: relu(up) ** 2 * gate,
    "silu(relu²)": lambda gate, up: silu(relu(gate) ** 2) * up,  # the gate is squared, the node left to silu
    "silu²": lambda gate, up: silu(gate) ** 2 * up,
}
# Less than what ternary types' activations in 8 bits cost, so only F32 weights can show it.
WRONG_IN_F32: dict[str, Product] = {
    "one value of a layer": lambda gate, up: np.append((relu(gate) ** 2 * up)[:-1], silu(gate[-1]) * up[-1]),
}


@pytest.mark.parametrize(
    ("type_name", "name"),
    [
        *(("f32", name) for name in (*RIGHT, *WRONG, *WRONG_IN_F32)),
        *(("tq2_0", name) for name in (*RIGHT, *WRONG)),
    ],
)
def test_another_activation_would_show(name, type_name, model_file, expected, monkeypatch):
    product = {**RIGHT, **WRONG, **WRONG_IN_F32}[name]

    def callback_of(state: relu2.State) -> relu2.Callback:
        def callback(address: int, is_question: int, _state: int) -> int:
            node = relu2.Tensor.from_address(address)
            if is_question:
                return int(node.op == state[relu2.GLU_OP])
            gate, up, out = (floats_of(tensor) for tensor in (*sources(node), node))
            out[:] = product(gate, up)
            state[relu2.N_REWRITTEN] += 1
            return 1

        return callback

    monkeypatch.setenv("TRITGGUF_KERNELS", "numpy")
    monkeypatch.setattr(relu2, "plain_callback", callback_of)
    with f32_session(model_file(type_name)) as session:
        found = np.array([last_logits(session, IDS[: n + 1], n_cached=n) for n in range(200)])
    error = relative_error(found, expected)
    assert (error <= RELATIVE_ERROR[type_name]) == (name in RIGHT), f"relative error {error:.2e}"


def test_an_evaluation_that_did_not_rewrite_every_layer_is_an_error(model_file, way):
    with tritgguf.runtime.open(model_file("f32"), n_threads=1) as session:
        session.evaluate(IDS[:3])
        session.context.n_layers += 1
        with pytest.raises(EngineError, match=r"in 3 of 4 layers, 0 nodes .* install llama-cpp-python 0\.3\.36"):
            session.evaluate(IDS[3:6])


@pytest.mark.parametrize(("glu_off", "kind_off", "n_refused"), [(1, 0, 0), (0, 1, 3)])
def test_a_graph_with_another_activation_is_an_error(glu_off, kind_off, n_refused, model_file, way, monkeypatch):
    glu_op, swiglu = relu2.check_layout(backend.libggml)
    monkeypatch.setattr(relu2, "check_layout", lambda _library: (glu_op + glu_off, swiglu + kind_off))
    with (
        tritgguf.runtime.open(model_file("f32"), n_threads=1) as session,
        pytest.raises(EngineError, match=f"rewritten in 0 of 3 layers, {n_refused} nodes are of another kind"),
    ):
        session.evaluate(IDS[:3])


def test_layers_on_a_gpu_are_refused(model_file):
    for asked in ({"n_gpu_layers": 2}, {"main_gpu": 0}, {"tensor_split": (1, 1)}, {"rpc": ("localhost:50052",)}):
        with pytest.raises(EngineError, match=r"f32\.gguf: .* on this machine's CPU; leave --gpu-layers, .* --rpc out"):
            tritgguf.runtime.open(model_file("f32"), **asked)
    tritgguf.runtime.open(model_file("f32"), n_gpu_layers=0).close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefixes": ("bitnet-b1.58",)}, r"bitnet\.attention\.head_count is missing, expected the same"),
        ({"prefixes": ("bitnet",)}, r"bitnet-b1\.58\.attention\.head_count is missing"),
        ({"changes": {"bitnet.context_length": 4096}}, r"context_length is 1024, bitnet\.context_length is 4096"),
        ({"changes": {f"{name}.block_count": 10**6 for name in bitnet.ARCHITECTURES}}, "block_count is 1000000"),
    ],
)
def test_numbers_that_differ_under_the_two_names_are_refused(options, message, tmp_path):
    path = bitnet.write_gguf(tmp_path / "odd.gguf", "tq1_0", **options)
    with pytest.raises(EngineError, match=message):
        tritgguf.runtime.open(path)


# --- ggml's structures -----------------------------------------------------------------------------------------------


def test_the_pinned_library_has_the_known_layout():
    glu_op, swiglu = relu2.check_layout(backend.libggml)
    assert glu_op > 50
    assert swiglu == 2
    assert relu2.KNOWN_VERSION == backend.VERSION


def exchanged(first: str, second: str) -> list[str]:
    names = [name for name, _ in relu2.Tensor._fields_]
    i, j = names.index(first), names.index(second)
    names[i], names[j] = names[j], names[i]
    return names


@pytest.mark.parametrize(
    "names",
    [
        exchanged("ne", "nb"),
        exchanged("op", "flags"),
        exchanged("op", "type"),
        exchanged("op_params", "flags"),
        exchanged("view_src", "data"),
        exchanged("view_offs", "data"),
        exchanged("name", "extra"),
        exchanged("buffer", "data"),
        [name for name, _ in relu2.Tensor._fields_ if name != "extra"],
        [name for name, _ in relu2.Tensor._fields_ if name != "buffer"],
    ],
    ids=lambda names: ",".join(names)[:60],
)
def test_another_layout_is_refused_in_one_line(names, monkeypatch):
    kinds = dict(relu2.Tensor._fields_)

    class Other(ctypes.Structure):
        _fields_ = tuple((name, kinds[name]) for name in names)

    monkeypatch.setattr(relu2, "Tensor", Other)
    with pytest.raises(EngineError, match=r"^this llama-cpp-python's .* install llama-cpp-python 0\.3\.36$"):
        relu2.check_layout(backend.libggml)


def test_a_library_that_lacks_a_function_is_refused():
    with pytest.raises(EngineError, match="tensor layout isn't the one known"):
        relu2.check_layout(object())


def test_a_user_sees_the_layouts_error_when_opening(model_file, monkeypatch):
    monkeypatch.setattr(relu2, "_OBJECT_BYTES", 48)
    with pytest.raises(EngineError, match="tensor layout isn't the one known"):
        tritgguf.runtime.open(model_file("f32"))


# --- the callbacks by themselves -------------------------------------------------------------------------------------


def sources(node: relu2.Tensor) -> tuple[relu2.Tensor, relu2.Tensor]:
    return relu2.Tensor.from_address(node.src[0]), relu2.Tensor.from_address(node.src[1])


def floats_of(tensor: relu2.Tensor) -> Floats:
    return np.ctypeslib.as_array((ctypes.c_float * int(np.prod(list(tensor.ne)))).from_address(tensor.data))


class Nodes:
    """A GLU node and its two sources, outside of any graph."""

    def __init__(self, gate: Floats, up: Floats) -> None:
        self.arrays = {"gate": gate.copy(), "up": up.copy(), "glu": np.full_like(gate, 77)}
        n_rows, n_columns = gate.shape
        self.tensors = {name: relu2.Tensor() for name in self.arrays}
        for name, tensor in self.tensors.items():
            tensor.ne[:] = n_columns, n_rows, 1, 1
            tensor.nb[:] = 4, 4 * n_columns, 4 * gate.size, 4 * gate.size
            tensor.data = self.arrays[name].ctypes.data
            tensor.name = {"gate": b"ffn_gate-1", "up": b"ffn_up-1", "glu": b"ffn_sub_out-1"}[name]
        glu = self.tensors["glu"]
        glu.op, glu.op_params[0] = 90, 2
        glu.src[0], glu.src[1] = (ctypes.addressof(self.tensors[name]) for name in ("gate", "up"))

    def call(self, way: str, *, ask: bool) -> tuple[int, int, int]:
        """Return what the callback answers, and how many nodes it says it rewrote and refused."""
        state = np.array([90, 2, 0, 0], np.int64)
        function = relu2.plain_callback(state) if way == "plain" else relu2.compiled_callback()
        assert function is not None
        native_type = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
        callback = native_type(function)
        answer = callback(ctypes.addressof(self.tensors["glu"]), ask, state.ctypes.data)
        return answer, int(state[relu2.N_REWRITTEN]), int(state[relu2.N_REFUSED])


WAYS = ("plain", "compiled")
SPECIAL = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-30, 3e38, 1e-45], np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_the_product_bit_for_bit(way):
    rng = np.random.default_rng(5)
    gate, up = rng.standard_normal((2, 37, 301), dtype=np.float32)
    gate[0, :100], up[0, :100] = np.repeat(SPECIAL, 10), np.tile(SPECIAL, 10)
    nodes = Nodes(gate, up)
    with np.errstate(all="ignore"):
        squares = np.where(gate < 0, np.float32(0), gate) ** 2
        right = squares * up
        assert nodes.call(way, ask=False) == (True, 1, 0)
    assert np.array_equal(nodes.arrays["glu"], right, equal_nan=True)
    assert np.isnan(right).sum() > 10
    assert np.array_equal(nodes.arrays["gate"], gate, equal_nan=True)
    assert np.array_equal(nodes.arrays["up"], up, equal_nan=True)


@pytest.mark.parametrize("way", WAYS)
def test_only_glu_nodes_are_wanted(way):
    nodes = Nodes(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert nodes.call(way, ask=True) == (True, 0, 0)
    for op in (0, 89, 91, 90 | 1 << 16):
        nodes.tensors["glu"].op = op
        assert nodes.call(way, ask=True) == (False, 0, 0)
    assert (nodes.arrays["glu"] == 77).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("which", "field", "value"),
    [
        ("glu", "type", 1),
        ("gate", "type", 1),
        ("up", "type", 30),
        ("glu", "ne", (3, 2, 1, 2)),
        ("gate", "ne", (3, 1, 1, 1)),
        ("up", "ne", (2, 3, 1, 1)),
        ("gate", "nb", (4, 24, 48, 48)),
        ("up", "nb", (8, 12, 24, 24)),
        ("glu", "op_params", (0,)),
        ("gate", "name", b"ffn_up-1"),
        ("up", "name", b"ffn_gate-1"),
        ("up", "name", b"ffn_down-1"),
        ("gate", "data", None),
        ("glu", "data", None),
    ],
)
def test_other_nodes_are_refused_and_left_alone(which, field, value, way):
    nodes = Nodes(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    if isinstance(value, tuple):
        getattr(nodes.tensors[which], field)[: len(value)] = value
    else:
        setattr(nodes.tensors[which], field, value)
    assert nodes.call(way, ask=False) == (True, 0, 1)
    assert (nodes.arrays["glu"] == 77).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [0, 1])
def test_a_node_without_one_of_its_sources_is_refused(number, way):
    nodes = Nodes(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    nodes.tensors["glu"].src[number] = None
    assert nodes.call(way, ask=False) == (True, 0, 1)
    assert (nodes.arrays["glu"] == 77).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("which", ["gate", "up"])
def test_a_node_in_its_inputs_memory_is_refused(which, way):
    nodes = Nodes(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    nodes.tensors["glu"].data = nodes.arrays[which].ctypes.data
    assert nodes.call(way, ask=False) == (True, 0, 1)
    assert (nodes.arrays[which] == 1).all()


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_a_long_prompt(model_file, way):
    tokens = [number % 256 for number in range(512)]
    with Model(model_file("f32")) as model:
        context = Context(model, n_ctx=512, n_threads=1, n_batch=512)
        with ctrl_c_in_callback(None) as whole:
            context.decode(tokens, 0)
        context.keep(0)
        assert whole.n_calls > 20
        with pytest.raises(KeyboardInterrupt), ctrl_c_in_callback(10) as stopped:
            context.decode(tokens, 0)
        assert stopped.n_calls < whole.n_calls / 2
        context.keep(0)
        context.decode(tokens[:100], 0)  # the counts start anew
        context.close()


@pytest.mark.usefixtures("unmeasured")
def test_a_signal_during_the_callback_harms_nothing(model_file, way, tmp_path):
    assert evaluate_under_ctrl_c(model_file("tq2_0"), IDS, tmp_path / "logits.npy") >= 3
    with tritgguf.runtime.open(model_file("tq2_0"), n_threads=1) as session:
        calm = [last_logits(session, IDS[: n + 1], n_cached=n) for n in range(len(IDS))]
    assert np.array_equal(np.load(tmp_path / "logits.npy"), np.array(calm))


def test_sequences_that_are_evaluated_together(model_file: Callable[[str], Path], expected: Floats) -> None:
    """As the server does: prompts of three conversations in one batch, then a token of each."""
    lengths = (40, 7, 100)
    with Model(model_file("f32")) as model:
        context = Context(model, n_ctx=256, n_threads=1, n_batch=256, n_sequences=3)
        rows = [
            Row(IDS[position], position, sequence, position == length - 1)
            for sequence, length in enumerate(lengths)
            for position in range(length)
        ]
        assert context.decode_batch(rows)
        for output, length in enumerate(lengths):
            assert relative_error(context.logits(output), expected[length - 1]) < DEFAULT_ATTENTION_ERROR["f32"]
        assert context.decode_batch([Row(IDS[length], length, n, True) for n, length in enumerate(lengths)])
        for output, length in enumerate(lengths):
            assert relative_error(context.logits(output), expected[length]) < DEFAULT_ATTENTION_ERROR["f32"]
        assert context.keep(5, 2) == 5
        assert context.keep(0, 1) == 0
        context.share(5, 2, 1)
        assert context.decode_batch([Row(IDS[5], 5, sequence, True) for sequence in (1, 2)])
        for output in range(2):
            assert relative_error(context.logits(output), expected[5]) < DEFAULT_ATTENTION_ERROR["f32"]
        context.close()

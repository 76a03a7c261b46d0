"""Where layers go. Oracles: what ggml says of its devices, and llama.cpp's log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

import tritgguf.converter
import tritgguf.runtime
from tests.command_line import run_captured
from tests.oracles.libggml import dequantize
from tests.paths import ROOT
from tritgguf.converter.errors import EngineError
from tritgguf.converter.quant.codec import codecs
from tritgguf.runtime.engine import backend
from tritgguf.runtime.engine.devices import CPU, GPU, Device, all_devices, unsupported
from tritgguf.runtime.engine.gguf_header import multiplied_tensors, read_header
from tritgguf.runtime.engine.gpu_memory import ALL_LAYERS, LEFT_FREE_BYTES, layer_bytes, layers_that_fit
from tritgguf.runtime.engine.kernels import library as kernels
from tritgguf.runtime.engine.placement import Placement, place

DEMO = ROOT / "vendor" / "demo-model"
CACHE_KEYS = [
    f"llama.{name}" for name in ("block_count", "attention.head_count_kv", "embedding_length", "attention.head_count")
]
CUT_OFF = "(cut off: --max-tokens reached)\n"
without_gpu = pytest.mark.skipif(backend.supports_gpu(), reason="there is a GPU here")
# A device that multiplies some types only: tritgguf's kernels as llama.cpp loads them. For a process of its own, since
# nothing unloads them.
ASK = """
import sys
from pathlib import Path
from tritgguf.runtime.engine import backend, placement
from tritgguf.runtime.engine.devices import all_devices
from tritgguf.runtime.engine.kernels import library, routes
ggml = backend.ggml()
assert routes.install_accelerator(library.load(), ggml) is None
(device,) = [device for device in all_devices(ggml) if device.name == "Ternary"]
print(*placement.without_kernel(ggml, Path(sys.argv[1]), [device]))
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("placed") / "demo.gguf"
    tritgguf.converter.convert(DEMO, path, type="tq2_0", check=False)
    return path


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"tensor_split": (0.0, 0.0)}, "the tensor split is 0,0, expected shares from 0, not all of them 0"),
        ({"tensor_split": (3.0, -1.0)}, "the tensor split is 3,-1, expected"),
        ({"tensor_split": (float("nan"),)}, "the tensor split is nan, expected"),
        ({"rpc": ("one:1", "one:1")}, "one:1: the server is given 2 times; give it once"),
        ({"rpc": ("one",)}, "'one' isn't a server's address, expected host:port such as"),
        ({"rpc": ("one:0",)}, "'one:0' isn't"),
        ({"rpc": (":50052",)}, "':50052' isn't"),
        ({"rpc": ("::1:50052",)}, "'::1:50052' isn't"),  # llama.cpp knows IPv4 alone
        ({"rpc": ("",)}, "'' isn't"),
    ],
)
def test_what_contradicts_itself(asked: dict[str, object], said: str) -> None:
    with pytest.raises(EngineError) as error:
        Placement(**asked)
    assert str(error.value).startswith(said)


@without_gpu
def test_options_that_do_nothing_here_say_so(demo: Path, monkeypatch, capsys) -> None:
    ask = ("chat", demo, "--prompt", "Who are you?", "--temperature", "0", "--max-tokens", "4")
    plain = run_captured(monkeypatch, capsys, *ask)
    assert (plain[0], plain[2]) == (0, CUT_OFF)
    nothing = "nothing: this llama.cpp finds no GPU; `tritgguf doctor` shows what there is, "
    code, out, errors = run_captured(monkeypatch, capsys, *ask, "--gpu-layers", "2")
    assert (code, out, errors.count("\n")) == (0, plain[1], 2)
    assert errors.startswith(f"note: --gpu-layers does {nothing}")
    code, out, errors = run_captured(monkeypatch, capsys, *ask, "--main-gpu", "1", "--tensor-split", "2,1")
    assert (code, out, errors.count("\n")) == (0, plain[1], 2)
    assert errors.startswith(f"note: --main-gpu and --tensor-split do {nothing}")
    assert run_captured(monkeypatch, capsys, *ask, "--gpu-layers", "0") == plain
    assert run_captured(monkeypatch, capsys, *ask, "--gpu-layers", "2", "-q") == plain


@without_gpu
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="there is no GPU 0 here"):
        place(backend.ggml(), Placement(main_gpu=0), has_gpus=True, layers=list)


def test_how_many_layers_fit() -> None:
    layers = [10, 20, 30, 40]  # the last one is the output layer
    for free, count in (((0,), 0), ((39,), 0), ((40,), 1), ((89,), 2), ((90,), 3), ((45, 45), 3), ((100,), ALL_LAYERS)):
        found = [Device(0, "GPU", "", GPU, "CUDA", LEFT_FREE_BYTES + each, 10**10) for each in free]
        assert layers_that_fit(layers, found) == count, free
    too_little, unknown = (Device(0, "GPU", "", GPU, "CUDA", 1000, total) for total in (10**10, 0))
    assert layers_that_fit(layers, [too_little, too_little]) == 0
    assert layers_that_fit(layers, [unknown]) == ALL_LAYERS
    assert layers_that_fit(layers, []) == ALL_LAYERS


def test_what_the_layers_of_a_file_need(demo: Path) -> None:
    tensors, header = {one.name: one.n_bytes for one in gguf.GGUFReader(demo).tensors}, read_header(demo)
    numbers = [field.contents() for field in map(gguf.GGUFReader(demo).fields.get, CACHE_KEYS)]
    n_blocks, n_heads, head_size = numbers[0], numbers[1], numbers[2] // numbers[3]
    *blocks, output = layer_bytes(demo, header, 100)
    cache = 100 * 2 * n_heads * head_size * 2  # keys and values of F16
    assert len(blocks) == n_blocks
    assert sum(blocks) + output == sum(tensors.values()) + n_blocks * cache  # the embeddings are the output layer too
    assert output == sum(size for name, size in tensors.items() if not name.startswith("blk."))


def test_a_split_is_a_list_of_numbers(demo: Path, monkeypatch, capsys) -> None:
    code, _, errors = run_captured(monkeypatch, capsys, "chat", demo, "--tensor-split", "3,all")
    assert code == 2
    assert "isn't a list of numbers" in errors


def test_the_cpu_multiplies_every_type_that_is_written() -> None:
    (cpu,) = [device for device in all_devices(backend.ggml()) if device.kind == CPU]
    assert cpu.target == "cpu"
    shapes = ((16, 512), (3, 16, 512))
    weights = [(int(codec.ggml_type), shape) for codec in codecs().values() for shape in shapes]
    assert unsupported(backend.ggml(), cpu, weights) == set()


@pytest.mark.skipif(not kernels.PATH.exists(), reason="tritgguf's kernels weren't built")
def test_types_without_a_kernel_are_named_with_the_repack(demo: Path, tmp_path: Path) -> None:
    def asked(path: Path) -> str:
        command = [sys.executable, "-c", ASK, str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    ternary, other = tmp_path / "tq2_0.gguf", tmp_path / "q4_0.gguf"
    tritgguf.converter.convert(demo, ternary, "tq2_0", embedding_type="bf16", check=False)
    tritgguf.converter.convert(demo, other, "q4_0", embedding_type="bf16", check=False)
    for path, types in ((ternary, "BF16"), (other, "BF16, Q4_0")):
        assert asked(path) == (
            f"{path}: Ternary has no kernel for {types}, so the CPU multiplies these weights; "
            f"`tritgguf convert {path} OUT.gguf --for any` stores the same weights in types with one"
        )


def test_the_repack_has_kernels_and_the_same_weights(demo: Path, tmp_path: Path) -> None:
    for_cuda = tmp_path / "cuda.gguf"
    tritgguf.converter.convert(demo, for_cuda, target="cuda", check=False)
    before, after = ({tensor.name: tensor for tensor in multiplied_tensors(path)} for path in (demo, for_cuda))
    assert before.keys() == after.keys()
    ternary = [name for name, tensor in before.items() if tensor.dtype == "TQ2_0"]
    assert ternary
    assert all("cuda" in codecs()[tensor.dtype.lower()].runs_on for tensor in after.values())
    for name in ternary:
        stored = [(one.data.reshape(one.shape[0], -1), one.ggml_type) for one in (before[name], after[name])]
        assert np.array_equal(*(dequantize(rows, kind) for rows, kind in stored)), name


@without_gpu
def test_a_model_tells_where_its_layers_are(tmp_path: Path) -> None:
    path = tmp_path / "demo.gguf"
    tritgguf.converter.convert(DEMO, path, type="tq2_0", check=False)
    n_blocks = gguf.GGUFReader(path).get_field("llama.block_count").contents()
    with tritgguf.runtime.open(path, n_ctx=64) as session:
        assert session.model.layers_in_words == f"all {n_blocks + 1} on the CPU"

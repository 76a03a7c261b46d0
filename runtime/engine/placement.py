"""Where a model's layers are computed: on this machine's CPU, its GPUs, and other machines."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine.devices import Device, gpus, unsupported
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions
from tritgguf.runtime.engine.gguf_header import multiplied_tensors, read_header
from tritgguf.runtime.engine.gpu_memory import ALL_LAYERS, CACHE_TOKENS, fit_note, layer_bytes, layers_that_fit
from tritgguf.runtime.engine.rpc import connect, disconnect, endpoint


@dataclass(frozen=True)
class Placement:
    """What is asked for.

    `n_gpu_layers` layers, the last ones, go to GPUs and other machines; None means as many as the GPUs' free memory
    holds, or all with `tensor_split` or `rpc`. `main_gpu` is the only one of this machine's GPUs to use, counted from
    0. `tensor_split` are the shares of the devices: those of `rpc`, which are servers as "host:port", then this
    machine's GPUs; without, each gets what its free memory holds. Raises EngineError where these contradict each other.
    """

    n_gpu_layers: int | None = None
    main_gpu: int | None = None
    tensor_split: tuple[float, ...] = ()
    rpc: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for server, times in Counter(self.rpc).items():
            endpoint(server)
            if times > 1:
                raise EngineError(f"{server}: the server is given {times} times; give it once")
        if not all(math.isfinite(share) and share >= 0 for share in self.tensor_split) or (
            self.tensor_split and not any(self.tensor_split)
        ):
            raise EngineError(
                f"the tensor split is {_listed(self.tensor_split)}, expected shares from 0, not all of them 0"
            )

    @property
    def asks_for_devices(self) -> bool:
        """Whether something other than this machine's CPU is asked for."""
        return bool(self.n_gpu_layers or self.main_gpu is not None or self.tensor_split or self.rpc)

    @property
    def fits_layers(self) -> bool:
        """Whether the GPUs' free memory decides how many layers they get."""
        return self.n_gpu_layers is None and not (self.tensor_split or self.rpc)


ANYWHERE = Placement()  # all layers on GPUs, where there are such, or as many as fit


@dataclass(frozen=True)
class Placed:
    """What llama.cpp is told, to be kept while it loads; `devices` and `shares` are None where it chooses by itself.

    `n_gpu_layers` is ALL_LAYERS or a number, `local` whether GPUs of this machine compute some of them, `names` are the
    devices' for people.
    """

    n_gpu_layers: int
    local: bool
    devices: Any = None
    shares: Any = None
    servers: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def in_words(self, n_layers: int) -> str:
        """Return where the model's layers are computed; `n_layers` is their number, with the output layer."""
        if self.n_gpu_layers == 0:
            return f"all {n_layers} on the CPU"
        where = " and ".join(self.names)
        if self.n_gpu_layers == ALL_LAYERS or self.n_gpu_layers >= n_layers:
            return f"all {n_layers} on {where}"
        return f"the last {self.n_gpu_layers} of {n_layers} on {where}, the others on the CPU"

    @property
    def device_list(self) -> int | None:
        """Return the address of the list of devices."""
        return None if self.devices is None else ctypes.addressof(self.devices)

    def disconnect(self) -> None:
        """Leave the servers; to be called when the model is closed."""
        disconnect(self.servers)


def _listing(devices: Sequence[Device]) -> Any:  # noqa: ANN401
    """Return the list of devices that llama.cpp takes, which an empty element ends."""
    return (ctypes.c_void_p * (len(devices) + 1))(*(device.address for device in devices))


# An empty list: without layers to compute, a GPU would still multiply long prompts with the CPU's weights.
CPU_ALONE = Placed(0, local=False, devices=_listing(()))


def place(ggml: GgmlFunctions, wanted: Placement, *, has_gpus: bool, layers: Callable[[], Sequence[int]]) -> Placed:
    """Return what to tell llama.cpp; connects to the servers.

    `layers` returns the bytes of each layer; it is called where nobody says how many go to GPUs. EngineError where a
    server can't be used, or a GPU or a share is given that isn't there. Where there is no device, the model stays on
    the CPU, whatever is asked for.
    """
    if wanted.n_gpu_layers == 0 or not (wanted.rpc or has_gpus):
        return CPU_ALONE
    local = _local(ggml, wanted.main_gpu) if has_gpus else []
    n_layers = ALL_LAYERS if wanted.n_gpu_layers is None else wanted.n_gpu_layers
    if wanted.fits_layers and (n_layers := layers_that_fit(layers(), local)) == 0:
        return CPU_ALONE
    if not (wanted.rpc or wanted.main_gpu is not None or wanted.tensor_split):
        return Placed(n_layers, local=True, names=_names(local))
    found = [*(connect(ggml, wanted.rpc) if wanted.rpc else []), *local]
    try:
        shares = _shares(ggml, wanted.tensor_split, found)
    except EngineError:
        disconnect(wanted.rpc)
        raise
    return Placed(n_layers, bool(local), _listing(found), shares, wanted.rpc, _names(found))


def unused(wanted: Placement, *, has_gpus: bool) -> str | None:
    """Return in one line which options do nothing here, None where there are none such."""
    if has_gpus:
        return None
    options = ["--gpu-layers"] if wanted.n_gpu_layers and not wanted.rpc else []
    options += ["--main-gpu"] if wanted.main_gpu is not None else []
    options += ["--tensor-split"] if wanted.tensor_split and not wanted.rpc else []
    if not options:
        return None
    verb = "does" if len(options) == 1 else "do"
    return (
        f"{' and '.join(options)} {verb} nothing: this llama.cpp finds no GPU; `tritgguf doctor` shows what there is, "
        "`make BACKEND=cuda` and the like build it for one"
    )


def without_kernel(ggml: GgmlFunctions, path: Path, devices: Sequence[Device]) -> list[str]:
    """Return a line for each device that has no matrix product for a type of the file at `path`, or for a shape."""
    tensors = multiplied_tensors(path)
    kinds = {(tensor.dtype, int(tensor.ggml_type), tensor.shape): tensor.name for tensor in tensors}
    lines = []
    for device in devices:
        lacking = [kind for kind in kinds if unsupported(ggml, device, [kind[1:]])]
        multiplied = {dtype for dtype, *_ in kinds.keys() - lacking}
        if names := sorted({dtype for dtype, *_ in lacking} - multiplied):
            lines.append(
                f"{path}: {device.name} has no kernel for {', '.join(names)}, so the CPU multiplies these weights; "
                f"`tritgguf convert {path} OUT.gguf --for {device.target}` stores the same weights in types with one"
            )
        lines += (
            f"{path}: {device.name} can't multiply {kinds[kind]}, {kind[0]} of {' × '.join(map(str, kind[2]))}, so the "
            "CPU does"
            for kind in lacking
            if kind[0] in multiplied
        )
    return lines


def what_fits(ggml: GgmlFunctions, wanted: Placement, path: Path, cache_tokens: int | None) -> list[str]:
    """Return a line where not all layers of the file at `path` go to this machine's GPUs, since they don't fit.

    `cache_tokens` are those of all contexts, None as many as usual.
    """
    devices = used_gpus(ggml, wanted)
    if not (wanted.fits_layers and devices):
        return []
    layers = layer_bytes(path, read_header(path), cache_tokens or CACHE_TOKENS)
    n_fitting = layers_that_fit(layers, devices)
    return [] if n_fitting == ALL_LAYERS else [fit_note(path, layers, n_fitting, devices)]


def used_gpus(ggml: GgmlFunctions, wanted: Placement) -> list[Device]:
    """Return this machine's GPUs that a model gets; EngineError if there is no such GPU as is asked for."""
    return [] if wanted.n_gpu_layers == 0 else _local(ggml, wanted.main_gpu)


def _local(ggml: GgmlFunctions, main_gpu: int | None) -> list[Device]:
    found = gpus(ggml)
    if main_gpu is None:
        return found
    if main_gpu >= len(found):
        there = ", ".join(f"{number} ({device.name})" for number, device in enumerate(found))
        raise EngineError(f"there is no GPU {main_gpu} here, expected one of {there}")
    return [found[main_gpu]]


def _shares(ggml: GgmlFunctions, shares: Sequence[float], devices: Sequence[Device]) -> Any:  # noqa: ANN401
    most = ggml.function("llama_max_devices", ctypes.c_size_t)()
    if len(devices) > most:
        raise EngineError(f"there are {len(devices)} devices, llama.cpp takes at most {most}; leave servers out")
    if not shares:
        return None
    if len(shares) != len(devices):
        names = ", ".join(_names(devices))
        raise EngineError(
            f"the tensor split is {_listed(shares)}, expected {len(devices)} shares: for {names}, in this order"
        )
    return (ctypes.c_float * most)(*shares)


def _names(devices: Sequence[Device]) -> tuple[str, ...]:
    return tuple(f"{device.name} ({device.description})" for device in devices)


def _listed(shares: Sequence[float]) -> str:
    return ",".join(f"{share:g}" for share in shares)

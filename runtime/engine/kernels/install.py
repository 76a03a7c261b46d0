"""Put our CPU kernels into llama.cpp for the whole process: by the best way whose self-test passes, or not at all."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritgguf.converter.errors import EngineError
from tritgguf.runtime.engine import relu2
from tritgguf.runtime.engine.ggml_functions import GgmlFunctions
from tritgguf.runtime.engine.kernels import library as compiled
from tritgguf.runtime.engine.kernels.routes import ROUTES, Route

VARIABLE = "TRITGGUF_CPU_KERNELS"
AUTO = "auto"
STOCK: Literal["stock"] = "stock"
MODES = (AUTO, *ROUTES, STOCK)


@dataclass(frozen=True)
class CpuKernels:
    """What multiplies ternary weights on the CPU: our kernels by one of two routes, or llama.cpp's own code.

    `instructions` are those that our kernels use, "" with llama.cpp's own code; `reason` says why it is this route.
    """

    route: Route | Literal["stock"]
    instructions: str
    reason: str

    def __str__(self) -> str:
        if self.route == STOCK:
            return f"llama.cpp's own ({self.reason})"
        return f"tritgguf's for {self.instructions}, by {self.route} ({self.reason})"


def requested_mode() -> str:
    """Return the value of TRITGGUF_CPU_KERNELS, "auto" by default; raise EngineError if it is none of MODES."""
    mode = os.environ.get(VARIABLE, AUTO)
    if mode not in MODES:
        raise EngineError(f"{VARIABLE} is {mode!r}; expected one of {', '.join(MODES)}")
    return mode


def install(libllama: ctypes.CDLL, version: str) -> CpuKernels:
    """Install the kernels in `libllama` of llama-cpp-python `version`; call it once in a process.

    Raises EngineError where TRITGGUF_CPU_KERNELS is wrong, or demands a route that isn't open here.
    """
    from tritgguf.runtime.engine.kernels.verdicts import verdict  # not at the top: few commands load a model

    mode = requested_mode()
    found = _chosen(libllama._name, version, mode, verdict)
    if found.route != STOCK:
        refused = ROUTES[found.route](compiled.load(), GgmlFunctions(libllama))
        if refused is not None:
            found = CpuKernels(STOCK, "", refused)
    if mode not in (AUTO, found.route):
        raise EngineError(f"{VARIABLE} is {mode}, but that isn't possible here: {found.reason}; expected {AUTO}")
    return found


def fast_types() -> frozenset[str]:
    """Return the tensor types that the kernels multiply in the llama-cpp-python installed here, as far as is known.

    Their names are codecs', such as "q2_0"; there are none where llama.cpp's own code runs. Neither llama.cpp nor the
    self-test is started for that. Raises EngineError where TRITGGUF_CPU_KERNELS is wrong.
    """
    from tritgguf.runtime.engine.kernels.verdicts import known_verdict  # as below

    mode = requested_mode()
    libllama, version = installed_library()
    if libllama is None or _chosen(str(libllama), version, mode, known_verdict).route == STOCK:
        return frozenset()
    kernels = compiled.load()
    return frozenset(name.lower() for number, name in compiled.TYPES.items() if kernels.product_supports(number, 256))


def installed_library() -> tuple[Path | None, str]:
    """Return the path of libllama and the version of llama-cpp-python; None where there is none."""
    from importlib import metadata, util  # not at the top: only `convert` needs them

    found = util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None, ""
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(found.origin).parent / "lib")
    paths = [
        path for path in (folder / "libllama.so", folder / "libllama.dylib", folder / "llama.dll") if path.exists()
    ]
    return next(iter(paths), None), metadata.version("llama-cpp-python")


def _chosen(libllama: str, version: str, mode: str, why_not: Callable[[str, Route, str], str | None]) -> CpuKernels:
    """Return what is to be installed: the first route that `why_not` has nothing against."""
    if mode == STOCK:
        return CpuKernels(STOCK, "", f"{VARIABLE} is {STOCK}")
    if version != relu2.KNOWN_VERSION:
        return CpuKernels(STOCK, "", f"tritgguf's are for llama-cpp-python {relu2.KNOWN_VERSION}, this is {version}")
    try:
        instructions = compiled.instructions(compiled.load())
    except compiled.MissingError as error:
        return CpuKernels(STOCK, "", str(error))
    if not instructions:
        return CpuKernels(STOCK, "", "tritgguf's have no code for this processor")
    reasons: list[str] = []
    for route in ROUTES:
        if mode in (AUTO, route):
            refused = why_not(libllama, route, instructions)
            if refused is None:
                return CpuKernels(route, instructions, "; ".join([*reasons, "the self-test passed"]))
            reasons.append(f"no {route}: {refused}")
    return CpuKernels(STOCK, "", "; ".join(reasons))

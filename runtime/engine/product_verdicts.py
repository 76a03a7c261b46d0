"""What `tritgguf doctor` found out about this build's matrix products, kept in the user's cache folder.

One file per build of llama.cpp, processor and TRITGGUF_CPU_KERNELS. Whoever runs models only reads it: a type whose
products are known to crash or to be wrong here is refused in one line, and nothing is tested by surprise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import platformdirs

from tritgguf.converter.core.whole_files import write_whole
from tritgguf.converter.errors import EngineError, OutputError
from tritgguf.runtime.engine.gguf_header import multiplied_tensors
from tritgguf.runtime.engine.kernels.install import installed_library, requested_mode

State: TypeAlias = Literal["fast", "slow", "wrong", "crashes", "unfinished", "elsewhere"]
FAULTS: tuple[State, ...] = ("wrong", "crashes", "unfinished")
DeviceKind: TypeAlias = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class ProductVerdict:
    """How a device multiplies weights of a type; "elsewhere" is a GPU that leaves the type to the CPU.

    `rates` are multiplications and additions, 10⁹ per second, for one token and for many; of the CPU on one core.
    `reason` says what is wrong, `remedy` what helps; both are "" where nothing is.
    """

    device: str
    device_kind: DeviceKind
    type: str
    state: State
    rates: tuple[float, float] | None = None
    reason: str = ""
    remedy: str = ""

    @property
    def line(self) -> str:
        """What is wrong in one line."""
        return f"{self.type} products on {self.device} {self.reason}; {self.remedy}"


@dataclass(frozen=True)
class FoundDevice:
    """A CPU or a GPU as llama.cpp names it."""

    name: str
    description: str
    kind: DeviceKind
    total_bytes: int


@dataclass(frozen=True)
class Findings:
    """What the products' child process found; `problem` is why llama.cpp can't be loaded at all, None where it can."""

    tested: str  # the time, in ISO 8601
    problem: str | None
    system_info: str = ""
    cpu_kernels: str = ""
    amx_is_broken: bool = False
    n_threads: int = 0
    devices: tuple[FoundDevice, ...] = ()
    products: tuple[ProductVerdict, ...] = ()

    @property
    def faults(self) -> tuple[ProductVerdict, ...]:
        """The products that crash or are wrong."""
        return tuple(product for product in self.products if product.state in FAULTS)


def known_findings() -> Findings | None:
    """Return what was found out about the llama.cpp that is installed here, None where nothing was yet."""
    folder = _folder()
    if not folder.is_dir():  # most computers: nobody needs the digest of the libraries
        return None
    path = _file()
    return read(path) if path and path.exists() else None


def keep(found: Findings) -> None:
    """Keep findings for this build; where that isn't possible, the next doctor tests again."""
    with contextlib.suppress(OSError, OutputError):
        if path := _file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(asdict(found)).encode(), force=True)


def forget() -> None:
    """Remove what is kept about this build."""
    with contextlib.suppress(OSError):
        if path := _file():
            path.unlink(missing_ok=True)


def check_loading() -> None:
    """Raise EngineError if llama.cpp is known to end the process that loads it."""
    found = known_findings()
    if found and found.problem:
        raise EngineError(f"{found.problem}; `tritgguf doctor --again` tests again")


def check_products(path: Path, kinds: Collection[DeviceKind]) -> None:
    """Raise EngineError if devices of these kinds are known to compute tensors of the file at `path` wrongly."""
    found = known_findings()
    faults = [fault for fault in (found.faults if found else ()) if fault.device_kind in kinds]
    if not faults:
        return
    types = {tensor.dtype.lower() for tensor in multiplied_tensors(path)}
    for fault in faults:
        if fault.type in types:
            raise EngineError(f"{path}: {fault.line}; `tritgguf doctor --again` tests again")


def read(path: Path) -> Findings | None:
    """Return findings, None where the file is damaged."""
    try:
        return _findings(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _findings(kept: dict[str, Any]) -> Findings:
    """Return what was read; raise ValueError, KeyError or TypeError where it isn't of this form."""
    products = tuple(ProductVerdict(**{**product, "rates": _rates(product["rates"])}) for product in kept["products"])
    devices = tuple(FoundDevice(**device) for device in kept["devices"])
    found = Findings(**{**kept, "products": products, "devices": devices})
    texts = [text for product in products for text in (product.device, product.type, product.reason, product.remedy)]
    texts += [found.tested, found.system_info, found.cpu_kernels, found.problem or ""]
    texts += [text for device in devices for text in (device.name, device.description)]
    numbers = [found.n_threads, *(device.total_bytes for device in devices)]
    kinds = [thing.device_kind for thing in products] + [device.kind for device in devices]
    if not (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int) for number in numbers)
        and all(kind in get_args(DeviceKind) for kind in kinds)
        and all(product.state in get_args(State) for product in products)
    ):
        raise ValueError("not of this form")
    return found


def _rates(kept: Sequence[float] | None) -> tuple[float, float] | None:
    if kept is None:
        return None
    one, many = kept
    return float(one), float(many)


def _folder() -> Path:
    return platformdirs.user_cache_path("tritgguf", appauthor=False) / "doctor"


def _file() -> Path | None:
    """Return the file for the installed llama.cpp, None where there is none."""
    from tritgguf.runtime.engine.kernels.verdicts import build_digest  # not at the top: few need it

    libllama, version = installed_library()
    if libllama is None:
        return None
    what = hashlib.sha256(f"{version} {requested_mode()} {build_digest(str(libllama))}".encode())
    return _folder() / f"{what.hexdigest()[:32]}.json"

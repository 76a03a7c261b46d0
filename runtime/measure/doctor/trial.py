"""Products of every tensor type in child processes, since where they are broken they may end the process."""

from __future__ import annotations

import datetime
import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tritgguf.runtime.engine import child_process, decode_speed, product_verdicts
from tritgguf.runtime.engine.devices import CPU
from tritgguf.runtime.engine.product_verdicts import DeviceKind, Findings, FoundDevice, ProductVerdict, State

COMMAND = child_process.command("tritgguf.runtime.measure.doctor.products")
SECONDS = 300  # for loading llama.cpp or for one type's products; ends what hangs
# A type is slow where its products for many tokens take this many times as long as F16's, for which every build that
# was made for its processor has fast code. Scalar code takes 20 times as long and more, the slowest other code 4 times.
SLOW = 8
_BROKEN_CODE = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT", "SIGTRAP")
_WINDOWS_FAULTS = {0xC000001D: "illegal instruction", 0xC0000005: "access violation", 0xC0000409: "abort"}
INSTALL_AGAIN = (
    "install llama-cpp-python again on this computer, so that it is built for its processor: "
    "pip install --force-reinstall --no-cache-dir --no-deps --no-binary llama-cpp-python llama-cpp-python=={version}"
)
LATER = "run tritgguf doctor again when nothing else runs"

OnTest = Callable[[str], None]  # is told what is tested now


def findings(version: str, *, again: bool = False, on_test: OnTest | None = None) -> Findings:
    """Return what is known of the installed llama.cpp's products; test them where nothing is, or if `again`.

    `version` is llama-cpp-python's, for remedies.
    """
    known = None if again else product_verdicts.known_findings()
    if known is not None and known.problem is None:
        return known
    if again:
        decode_speed.forget()
    product_verdicts.forget()  # or the child would refuse to load a llama.cpp that was broken
    found, lasting = _Trial(version, on_test or (lambda _: None)).run()
    if lasting:
        product_verdicts.keep(found)
    return found


@dataclass(frozen=True)
class _End:
    """How a child ended.

    `crash` is the signal's name or the like, None where it ended by itself. `lasting` tells whether it would end so
    next time too, `late` whether it was ended because it said nothing for too long.
    """

    crash: str | None
    lasting: bool
    last_line: str
    late: bool = False


class _Trial:
    """Starts children until every product was tried: each begins behind the one that ended the child before."""

    def __init__(self, version: str, on_test: OnTest) -> None:
        self._remedy = INSTALL_AGAIN.format(version=version)
        self._on_test = on_test
        self._build: dict[str, Any] | None = None
        self._products: dict[str, ProductVerdict] = {}
        self._testing: dict[str, Any] | None = None
        self._problem: str | None = None
        self._done = False

    def run(self) -> tuple[Findings, bool]:
        """Return the findings, and whether they would be the same next time."""
        lasting = True
        while not self._done and self._problem is None:
            self._testing, before = None, len(self._products)
            end = self._run_child(list(self._products))
            lasting = lasting and end.lasting and self._problem is None  # what is missing may be there next time
            if not self._done and self._problem is None:
                self._take_end(end)
            if len(self._products) == before and not self._done:
                self._problem = self._problem or f"the test of llama.cpp's products failed: {end.last_line}"
                lasting = lasting and end.crash is not None
        return self._findings(), lasting

    def _run_child(self, tested: Sequence[str]) -> _End:
        with _child([*COMMAND, *tested]) as child, _Limit(child) as limit:
            errors: list[bytes] = []
            reader = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
            reader.start()
            assert child.stdout is not None
            for line in child.stdout:
                limit.restart()
                self._take(line)
            code = child.wait()
            reader.join()
        text = b"".join(errors).decode("utf-8", "replace").strip()
        crash, lasting = _crash(code)
        late = limit.passed and not self._done
        return _End(crash, lasting and not late, (text.splitlines() or [f"exit code {code}"])[-1], late)

    def _take(self, line: bytes) -> None:
        """Take what the child says; llama.cpp itself may print, too."""
        try:
            said = json.loads(line)
            event = said["event"]
        except (ValueError, KeyError, TypeError):
            return
        if event == "build":
            self._build = said
        elif event == "failed":
            self._problem = said["reason"]
        elif event == "start":
            self._testing = said
            self._on_test(f"{said['type']} on {said['device']}")
        elif event in ("result", "elsewhere"):
            self._note(said)
        elif event == "end":
            self._done = True

    def _note(self, said: dict[str, Any]) -> None:
        """Note a product that didn't end the child; which are slow is told at the end."""
        rates, wrong = said.get("rates"), said.get("wrong")
        verdict = ProductVerdict(said["device"], self._kind(said["device"]), said["type"], "elsewhere")
        if rates is not None:
            verdict = replace(verdict, state="fast", rates=(rates[0], rates[1]))
        if wrong is not None:
            reason = f"are wrong (relative difference {wrong:.2g} from numpy's)"
            verdict = replace(verdict, state="wrong", reason=reason, remedy=self._remedy_for(said))
        self._products[f"{verdict.device}/{verdict.type}"] = verdict

    def _take_end(self, end: _End) -> None:
        """Note what ended the child."""
        said, how = self._testing, end.crash
        if self._build is None and end.late:
            self._problem = f"llama.cpp wasn't loaded within {SECONDS} s; {LATER}, or {self._remedy}"
        elif self._build is None and how is not None:
            self._problem = f"llama.cpp crashes when it is loaded ({how}); {self._remedy}"
        elif said is not None and (end.late or how is not None):
            state: State = "crashes" if end.lasting else "unfinished"
            reason, remedy = f"crash ({how})", self._remedy_for(said)
            if not end.lasting:
                reason = f"took longer than {SECONDS} s" if end.late else f"were ended from outside ({how})"
                remedy = f"{LATER}, or {remedy}"
            self._products[f"{said['device']}/{said['type']}"] = ProductVerdict(
                said["device"], self._kind(said["device"]), said["type"], state, None, reason, remedy
            )

    def _remedy_for(self, said: dict[str, Any]) -> str:
        if said["own_kernels"]:
            return "TRITGGUF_CPU_KERNELS=stock uses llama.cpp's own code instead"
        if self._kind(said["device"]) == "gpu":
            return "update the GPU's driver, or use --gpu-layers 0"
        return self._remedy

    def _kind(self, device: str) -> DeviceKind:
        devices = self._build["devices"] if self._build else ()
        return "cpu" if any(found["name"] == device and found["kind"] == CPU for found in devices) else "gpu"

    def _findings(self) -> Findings:
        tested = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        if self._build is None:
            return Findings(tested, self._problem or "llama.cpp can't be loaded")
        build = self._build
        devices = tuple(
            FoundDevice(device["name"], device["description"], self._kind(device["name"]), device["total_bytes"])
            for device in build["devices"]
        )
        facts = {name: build[name] for name in ("system_info", "cpu_kernels", "amx_is_broken", "n_threads")}
        return Findings(tested, self._problem, **facts, devices=devices, products=judged(self._products.values()))


def judged(products: Iterable[ProductVerdict]) -> tuple[ProductVerdict, ...]:
    """Return the verdicts, with "slow" where a type's products take much longer than F16's on the same device."""
    products = tuple(products)
    f16 = {product.device: product.rates[1] for product in products if product.type == "f16" and product.rates}
    return tuple(
        replace(product, state="slow")
        if product.state == "fast" and product.rates and SLOW * product.rates[1] < f16.get(product.device, 0.0)
        else product
        for product in products
    )


def _crash(code: int) -> tuple[str | None, bool]:
    """Return what crashed a process by its exit code, None if nothing did, and whether it would do so again."""
    if (number := code & 0xFFFFFFFF) in _WINDOWS_FAULTS:
        return _WINDOWS_FAULTS[number], True
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return name, name in _BROKEN_CODE
    return None, code == 0


@contextmanager
def _child(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a child; kill it if it still runs at the end."""
    pipe = subprocess.PIPE
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=child_process.environment()
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


class _Limit:
    """Kills a child that says nothing for too long."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        self.passed = False

    def __enter__(self) -> _Limit:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def restart(self) -> None:
        self._timer.cancel()
        self._start()

    def _start(self) -> None:
        self._timer = threading.Timer(SECONDS, self._end)
        self._timer.daemon = True
        self._timer.start()

    def _end(self) -> None:
        self.passed = True
        self._child.kill()

"""Build and install the pinned llama-cpp-python: `python vendor/install_runtime.py [--backend cpu]`.

The pin, the sdist's hash and the CMake flags are data in llama-cpp-python.json beside this file. The wheel is built for
this very CPU, so it is cached under a key of pin, flags, compiler and CPU rather than in pip's own cache, which knows
none of these and would hand one machine's wheel to another. With `--wheel FOLDER` it is built for every CPU of this
kind, and put into that folder. Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PIN = Path(__file__).with_name("llama-cpp-python.json")
DEFAULT_BACKEND = "metal" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"

# A wheel with a build tag goes before one without: pip and uv then take this one.
BUILD_TAG = "1anycpu"

STEP = re.compile(r"\s*\[\s*(?:(\d+)/(\d+)|(\d+)%)\]")
STEP_PERCENT = 5  # how often the build tells how far it is
LAST_LINES = 30  # of its output, after a failure


def cmake_flags(pin: dict, backend: str, machine: str, *, any_machine: bool = False) -> list[str]:
    """Return the flags for one backend on one machine, or on any with its kind of CPU, in the order CMake gets them."""
    table = pin["cmake"]
    if any_machine:
        chosen, special = table["any machine"], platform.system()
    else:
        machine = {"AMD64": "x86_64", "amd64": "x86_64"}.get(machine, machine)
        chosen, special = table["this machine"], "MSVC" if os.name == "nt" else machine
    return [*table["common"], *chosen["any"], *chosen.get(special, []), *table["backend"][backend]]


def cpu_identity() -> str:
    """Describe the instruction set that -march=native would target."""
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout
    return platform.processor()


def compiler_identity() -> str:
    try:
        return subprocess.run([os.environ.get("CXX", "c++"), "--version"], capture_output=True, text=True).stdout
    except OSError:
        return ""


def cached_wheel(pin: dict, flags: list[str], *, any_machine: bool = False) -> Path:
    """Return the wheel for these flags, building it on first use: 3 to 8 minutes on 2 cores, for any machine 30."""
    variables = build_variables(pin, flags, any_machine=any_machine)
    what = [pin["version"], pin["sdist_sha256"], variables]
    identity = json.dumps([*what, "" if any_machine else cpu_identity(), compiler_identity()])
    key = hashlib.sha256(identity.encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "tritgguf" / f"llama-cpp-python-{pin['version']}-{key}"
    if not (wheels := sorted(folder.glob("*.whl"))):
        print(f"Building llama-cpp-python {pin['version']}; this happens once and takes some minutes.", flush=True)
        build_wheel(pin, variables, folder)
        wheels = sorted(folder.glob("*.whl"))
    return wheels[0]


def build_wheel(pin: dict, variables: dict[str, str], folder: Path) -> None:
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ, **variables}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheels = Path(scratch) / "wheels"
        command = [*pip_with_pinned_sdist("wheel", pin, Path(scratch)), "--verbose", "--wheel-dir", str(wheels)]
        run_with_progress(command, environment)
        if not folder.exists():
            wheels.rename(folder)


def pip_with_pinned_sdist(command: str, pin: dict, scratch: Path) -> list[str]:
    """Return a command of pip for the pinned sdist alone, whose hash pip checks; write the pin into `scratch`."""
    requirement = scratch / "pin.txt"
    requirement.write_text(f"llama-cpp-python=={pin['version']} --hash=sha256:{pin['sdist_sha256']}\n")
    pip = [sys.executable, "-m", "pip", command, "--no-cache-dir", "--no-deps", "--no-binary", "llama-cpp-python"]
    return [*pip, "--require-hashes", "-r", str(requirement)]


def build_variables(pin: dict, flags: list[str], *, any_machine: bool) -> dict[str, str]:
    """Return what tells llama-cpp-python's build backend, scikit-build-core, how to build it."""
    variables = {
        "CMAKE_ARGS": " ".join(f'"{flag}"' for flag in flags),
        "SKBUILD_BUILD_TARGETS": ";".join(pin["targets"]),
    }
    if any_machine:
        left_out = {"SKBUILD_WHEEL_EXCLUDE": ";".join(pin["left out for any machine"])}
        variables |= {**left_out, "SKBUILD_WHEEL_BUILD_TAG": BUILD_TAG}
    return variables


def run_with_progress(command: list[str], environment: dict[str, str]) -> None:
    """Run a build; print the share of files compiled, and after a failure the last lines of its output."""
    shown, most, last = -1, 0, collections.deque(maxlen=LAST_LINES)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=environment, **pipe) as build:
        for line in build.stdout:
            last.append(line)
            done, total = steps_done(line)
            most = max(most, total)
            percent = 100 * done // total if total == most > 0 else shown  # a build within it, as Vulkan's, has fewer
            if percent >= shown + STEP_PERCENT:
                shown = percent
                print(f"  {percent:3} % compiled", flush=True)
    if build.returncode != 0:
        sys.exit(f"{''.join(last)}error: building llama-cpp-python failed (exit code {build.returncode}); see above")


def steps_done(line: str) -> tuple[int, int]:
    """Return the steps done and all, of a line of ninja's ("[12/187] Building") or make's ("[ 12%] Building").

    Of other lines, both are 0.
    """
    if not (found := STEP.match(line)):
        return 0, 0
    done, total, percent = found.groups()
    return (int(percent), 100) if percent else (int(done), int(total))


def fetch_sdist(pin: dict, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [*pip_with_pinned_sdist("download", pin, Path(scratch)), "--dest", str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)


def install(wheel: Path) -> None:
    """Install the wheel, also over one of the same version, which another backend's is; then what it needs."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(wheel)], check=True)
    subprocess.run([*pip, str(wheel)], check=True)


def main() -> None:
    pin = json.loads(PIN.read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=sorted(pin["cmake"]["backend"]), default=DEFAULT_BACKEND)
    folder = {"metavar": "FOLDER", "type": Path}
    parser.add_argument("--wheel", **folder, help="put a wheel for any CPU of this kind there; install nothing")
    parser.add_argument("--sdist", **folder, help="put the sdist there; print the variables to build such a wheel with")
    parser.add_argument("--dry-run", action="store_true", help="print the CMake flags and stop")
    arguments = parser.parse_args()
    any_machine = bool(arguments.wheel or arguments.sdist)
    flags = cmake_flags(pin, arguments.backend, platform.machine(), any_machine=any_machine)
    if arguments.dry_run:
        print("\n".join(flags))
    elif arguments.sdist:
        fetch_sdist(pin, arguments.sdist)
        for name, value in build_variables(pin, flags, any_machine=any_machine).items():
            print(f"{name}={value}")
    elif arguments.wheel:
        arguments.wheel.mkdir(parents=True, exist_ok=True)
        print(shutil.copy2(cached_wheel(pin, flags, any_machine=True), arguments.wheel))
    else:
        install(cached_wheel(pin, flags))


if __name__ == "__main__":
    main()

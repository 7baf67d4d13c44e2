#!/usr/bin/env python3
"""Builds the llama-cpp-python wheel once per CPU and keeps it in the user's cache folder.

    llama_wheel.py          makes what is missing; the last line of stdout is the wheel's path
    llama_wheel.py --key    prints what the wheel depends on (version, machine, CPU, options) as one word

There are no ready-made wheels for it, and one tuned to this CPU is several times faster than a portable one.
Uses the standard library and pip only; exits 1 after saying what failed and what to do.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

# The wrapper forces LLAMA_BUILD_COMMON on in CMake's cache; a normal variable of that name, set when llama.cpp's
# project() runs, shadows it. Else the build compiles, and its install rule demands, helpers that edged never loads.
CMAKE_INCLUDE = "set(LLAMA_BUILD_COMMON OFF)\n"
CMAKE_OPTIONS = (
    "-DGGML_NATIVE=ON",  # tuned to this CPU: such a wheel must never travel to another machine, hence the key
    "-DLLAVA_BUILD=OFF",  # images: not used
    "-DLLAMA_BUILD_TOOLS=OFF",
)
BUILD_TARGETS = "llama"

BYTES_PER_COMPILER = 700 << 20  # the largest source files take about 600 MiB each; more would swap a small board
SECONDS_BETWEEN_LINES = 10  # without a terminal: often enough to see that it lives, rare enough for a log
LOG_TAIL_LINES = 30
STEP = re.compile(rb"\[\d+/\d+\]")  # ninja's and make's "[57/78]"


class BuildError(Exception):
    """What failed, and what to do about it."""


def cpu_signature() -> str:
    """The CPU lines that decide which instructions a native build may use; the same text on every core of a board."""
    wanted = {"model name", "flags", "Features", "CPU implementer", "CPU part", "CPU variant"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    lines = {line for line in text.splitlines() if line.partition(":")[0].strip() in wanted}
    return "\n".join(sorted(lines))


def user_cmake_args() -> str:
    return os.environ.get("CMAKE_ARGS", "")


def key() -> str:
    """One word that changes whenever a wheel built before may not be used any more."""
    parts = [SDIST_SHA256, CMAKE_INCLUDE, *CMAKE_OPTIONS, BUILD_TARGETS, user_cmake_args(), cpu_signature()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{VERSION}-{platform.machine()}-{digest}"


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edged" / "wheels"


def cached_wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("llama_cpp_python-*.whl"))), None)


@contextmanager
def only_one_builder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: a second setup waits for the first one's wheel instead of building beside it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is building llama-cpp-python; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """For people: stdout carries only the path."""
    print(text, file=sys.stderr, flush=True)


def parallel_jobs() -> int:
    """How many compilers to run at once: as many as CPUs that we may use, as far as memory allows."""
    cpus = len(os.sched_getaffinity(0))
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    available = int(match[1]) * 1024 if match else BYTES_PER_COMPILER
    return max(1, min(cpus, available // BYTES_PER_COMPILER))


def build_environment(include: Path) -> dict[str, str]:
    """pip's environment; the user's own CMAKE_ARGS come last, so that they win."""
    options = [*CMAKE_OPTIONS, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={include}"]
    return os.environ | {
        "CMAKE_ARGS": " ".join([*options, user_cmake_args()]).strip(),
        "SKBUILD_BUILD_TARGETS": BUILD_TARGETS,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(parallel_jobs()),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def pip_command(work: Path) -> list[str]:
    requirement = work / "requirement.txt"
    requirement.write_text(f"llama-cpp-python=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    return [
        *(sys.executable, "-m", "pip", "wheel", "-v"),
        *("--no-deps", "--require-hashes", "--no-binary", "llama-cpp-python"),
        "--no-cache-dir",  # pip would hand out a wheel that it built with other options
        *("--requirement", str(requirement), "--wheel-dir", str(work / "wheel")),
    ]


def show_progress(output: int, log_path: Path) -> None:
    """Copies the build's output (a file descriptor) to the log until it ends, and shows how far the build is: one live
    line on a terminal, else one every few seconds, also while a single large file compiles."""
    live = sys.stderr.isatty()
    start = shown = time.monotonic()
    step = "preparing"
    with log_path.open("wb") as log:
        while True:
            if select.select([output], [], [], 1.0)[0]:
                chunk = os.read(output, 1 << 16)
                if not chunk:
                    break
                log.write(chunk)
                if steps := STEP.findall(chunk):
                    step = steps[-1].decode()
            now = time.monotonic()
            if now - shown >= (1 if live else SECONDS_BETWEEN_LINES):
                shown = now
                line = f"  {step} {now - start:.0f} s"
                print(f"\r{line}" if live else line, end="" if live else "\n", file=sys.stderr, flush=True)
    if live:
        print(file=sys.stderr)


def run_build(work: Path, log_path: Path) -> Path:
    """Runs pip and returns the wheel it made below `work`; raises BuildError with the end of the log."""
    include = work / "llama.cmake"
    include.write_text(CMAKE_INCLUDE)
    process = subprocess.Popen(
        pip_command(work),
        env=build_environment(include),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # pip, ninja and the compilers are ended together
    )
    assert process.stdout is not None
    try:
        show_progress(process.stdout.fileno(), log_path)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # Ctrl-C: no compiler is left running behind the user's back
        raise
    finally:
        status = process.wait()
    wheel = cached_wheel(work / "wheel")
    if status or wheel is None:
        tail = "\n".join(log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:])
        raise BuildError(f"{tail}\n\nbuilding llama-cpp-python {VERSION} failed; the whole log: {log_path}")
    return wheel


def build(folder: Path) -> Path:
    """Builds into the cache folder; the wheel appears there complete or not at all."""
    say(f"building llama-cpp-python {VERSION} for this CPU, once ({parallel_jobs()} jobs, some minutes)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
        wheel = run_build(Path(work), folder / "build.log")
        final = folder / wheel.name
        wheel.replace(final)
    say(f"built in {time.monotonic() - started:.0f} s: {final}")
    return final


def ensure_wheel() -> Path:
    folder = cache_root() / key()
    folder.mkdir(parents=True, exist_ok=True)
    if wheel := cached_wheel(folder):
        return wheel
    with only_one_builder(folder):
        for leftover in folder.glob("build-*/"):  # of a build that was killed: gigabytes, and nobody else cleans here
            shutil.rmtree(leftover, ignore_errors=True)
        return cached_wheel(folder) or build(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--key", action="store_true", help="print the cache key and build nothing")
    if parser.parse_args().key:
        print(key())
        return 0
    try:
        print(ensure_wheel())
    except (BuildError, OSError) as error:
        say(f"{error}")
        return 1
    except KeyboardInterrupt:
        say("\nstopped; nothing was kept")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

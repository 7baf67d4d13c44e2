"""llama.cpp's server, built from the very sources of edged's bindings and for this CPU (`--peer-build`).

The xllamacpp wheel is one for every x86-64: it knows AVX2 and nothing newer. Where the CPU has AVX-512, edged's wheel
computes prompts half as fast again as that peer for no merit of edged's. This peer has the same llama.cpp, the same
compiler options, and differs in what is around it.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import llama_wheel

from benchmarks.peers import PeerError, cache_root

# One program that needs no library of the build folder; no HTTPS, no page for browsers: none of it is measured.
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
SOURCES = "vendor/llama.cpp"  # in the bindings' source distribution


def llama_server() -> Path:
    """The program; built where it is missing, in minutes.

    Raises:
        PeerError: with the end of what failed.
    """
    folder = cache_root() / f"llama-server-{llama_wheel.key()}"
    program = folder / "llama-server"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may be at it
        if not program.exists():
            _build(folder, program)
    return program


def _build(folder: Path, program: Path) -> None:
    print("building llama-server from the sources of llama-cpp-python, once (minutes)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as name:
        work, log = Path(name), folder / "build.log"
        tools = work / "tools"
        log.write_bytes(b"")
        _run([sys.executable, "-m", "venv", str(tools)], log)
        pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        _run([*pip, "install", "cmake", "ninja"], log)
        wanted = work / "requirement.txt"
        wanted.write_text(f"llama-cpp-python=={llama_wheel.VERSION} --hash=sha256:{llama_wheel.SDIST_SHA256}\n")
        no_wheel = ["--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(work)]
        _run([*pip, "download", *no_wheel, "--require-hashes", "--requirement", str(wanted)], log)
        with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        sources = next(work.glob("llama_cpp_python-*/")) / SOURCES
        build = work / "build"
        path = {"PATH": f"{tools / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}
        _run(["cmake", "-G", "Ninja", "-S", str(sources), "-B", str(build), *OPTIONS], log, path)
        jobs = str(llama_wheel.parallel_jobs())
        _run(["cmake", "--build", str(build), "--target", "llama-server", "--parallel", jobs], log, path)
        (build / "bin" / "llama-server").replace(program)


def _run(command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            command, check=False, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    if done.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise PeerError(f"{tail}\n\n{command[0]} failed; the whole log: {log}")

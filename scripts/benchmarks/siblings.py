"""The default model once more, smaller: requantized with the bindings edged runs on, once, into the cache.

What it says is worth little (Q4_K_M was quantized already); what it takes is that of a real second model.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import board
from benchmarks.subject import SubjectError

FILE_TYPE = "Q3_K_M"
ALLOWED = "requantized-q3_k_m"
# A process of its own: what llama.cpp allocates for it is not to lie in the bench, which may share the limit.
CODE = f"""
import sys, llama_cpp as lc
params = lc.llama_model_quantize_default_params()
params.ftype, params.allow_requantize = lc.LLAMA_FTYPE_MOSTLY_{FILE_TYPE}, True
params.nthread = int(sys.argv[3])
lc.llama_backend_init()
sys.exit(lc.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""


def cache() -> Path:
    """Where files lie that a bench made."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "bench"


def sibling() -> Path:
    """The file; made where it is missing (half a minute on two cores).

    Raises:
        SubjectError: llama.cpp does not make it.
    """
    source = board.model()
    wanted = cache() / f"{source.stem}-{ALLOWED}.gguf"
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another bench may be at it
        if not wanted.exists():
            print(f"quantizing {source.name} to {FILE_TYPE}, once", file=sys.stderr, flush=True)
            part = wanted.with_suffix(".part")
            command = [sys.executable, "-c", CODE, str(source), str(part), str(board.threads())]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SubjectError(f"{source.name} cannot be quantized again:\n{done.stderr[-2000:]}")
            part.replace(wanted)
    return wanted

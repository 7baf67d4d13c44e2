"""llama.cpp's server out of the xllamacpp wheel, with llama-server's flags; runs in the peers' environment.

The wheel has no program: its `Server` is llama.cpp's C++ server with its own HTTP listener and threads. Python does
nothing once it runs.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version=version())
    parser.add_argument("--model", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--threads-batch", type=int, required=True)
    parser.add_argument("--kv-unified", action=argparse.BooleanOptionalAction, required=True)
    parser.add_argument("--warmup", action=argparse.BooleanOptionalAction, required=True)
    parser.add_argument("--slot-save-path", default="")
    options = parser.parse_args()
    server = xllamacpp.Server(parameters(options))
    print(f"listening on {server.listening_address}", flush=True)
    signal.pause()


def parameters(options: argparse.Namespace) -> xllamacpp.CommonParams:
    """As llama-server makes them of its flags. Unlike there, a negative count of slots is not resolved."""
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.parallel
    params.n_ctx = options.ctx_size
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads_batch
    params.kv_unified = options.kv_unified
    params.warmup = options.warmup
    if options.slot_save_path:
        params.slot_save_path = f"{options.slot_save_path}/"  # names of files are appended to it
    return params


def version() -> str:
    """Of the wheel, and what its llama.cpp was built for."""
    return f"xllamacpp {xllamacpp.__version__} ({xllamacpp.get_system_info().strip()})".replace("%", "%%")


if __name__ == "__main__":
    main()

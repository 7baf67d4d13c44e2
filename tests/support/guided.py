"""A program for a child process: one parser under atheris, which looks for inputs by the lines they reach.

    python tests/support/guided.py PARSER RUNS FOLDER

Whatever is no refusal of the parser's own is written to a file in the folder, and ends the program with an error. A
process of its own, because libFuzzer ends the one it runs in.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edged"]):
    from edged import wire
    from edged.agent.privacy.vault import Restorer, Vault
    from edged.engines.llama import gguf
    from edged.errors import CallerError, ModelUnavailable
    from edged.transport.unix.server import _call, _Frames
    from edged.upstreams.answers import Assembly, Events
    from edged.upstreams.failures import Complaint, ExchangeFailed

Parser = Callable[[bytes], None]


def requests(data: bytes) -> None:
    """Of any content type, and frames of MessagePack-RPC."""
    for content_type in (None, "application/json", "application/msgpack"):
        try:
            request, _ = wire.decode_request(data, agent="house", content_type=content_type)
            wire.digest(request)
        except CallerError as error:
            wire.refusal(error, id=None)
    try:
        for frame in _Frames().whole(data):
            _call(frame)
    except CallerError:
        pass


def events(data: bytes) -> None:
    """A streamed answer, in pieces."""
    reader, assembly = Events(), Assembly(secret="key")
    try:
        for at in range(0, len(data), 7):
            for said in reader.feed(data[at : at + 7]):
                assembly.take(said)
        for said in reader.end():
            assembly.take(said)
        assembly.parsed()
    except (ExchangeFailed, Complaint, UnicodeDecodeError):
        pass


def models(data: bytes) -> None:
    """Headers of GGUF files. The magic is given: it would take long to find."""
    path = Path(tempfile.gettempdir()) / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + data)
    for read in (gguf.header, gguf.vocabulary, gguf.metadata):
        try:
            read(path)
        except ModelUnavailable:
            pass


def placeholders(data: bytes) -> None:
    """A text that is masked and restored, whole and in pieces."""
    text = data.decode(errors="replace")
    vault = Vault()
    vault.avoid([text])
    masked = vault.mask(text)
    if vault.restore(masked) != text:
        raise AssertionError("it came back as another text")
    heard: list[str] = []
    restorer = Restorer(vault, heard.append)
    for at in range(0, len(masked), 5):
        restorer.piece(masked[at : at + 5])
    restorer.end()
    if "".join(heard) != text:
        raise AssertionError("in pieces it came back as another text")


SEEDS: dict[str, tuple[Parser, list[bytes]]] = {
    "requests": (requests, [b'{"input":"hi","stop":["a"]}', b"\x81\xa5input\xa2hi", b"\x94\x00\x01\xa1x\x91\x80"]),
    "events": (events, [b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n']),
    "models": (models, [struct.pack("<QQQ", 0, 1, 1) + b"k" + struct.pack("<II", 4, 7)]),
    "placeholders": (placeholders, [b"mail a@example.org or +43 664 1234567", b"[EMAIL_1] 4111 1111 1111 1111"]),
}


def main(name: str, runs: str, folder: str) -> None:
    """See above."""
    parser, seeds = SEEDS[name]
    corpus = Path(folder) / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    tempfile.tempdir = folder
    # an input that takes 5 s hangs; 2 GiB is the interpreter with all that it has seen, and no parser of ours
    bounds = [f"-runs={runs}", "-max_len=4096", "-timeout=5", "-rss_limit_mb=2048", "-seed=1", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *bounds, f"-artifact_prefix={folder}/", str(corpus)], parser)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""One stored state as a file: whole or not there, and read only if every bit of it is as it was written.

    magic | format version | bytes of the header | SHA-256 of all that and the header | header (msgpack) | state

The header has the SHA-256 of the state, so the first digest answers for everything, and an index is made from headers
alone. SHA-256 and not BLAKE2: OpenSSL computes it with the CPU's own instructions where it has them (1.7 GB/s against
0.9 on x86; a Pi 4, which has none, checks 12 MB in less than 0.1 s).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

MAGIC = b"edged KV"
VERSION = 1
SUFFIX, UNFINISHED = ".state", ".part"
CHUNK = 2**20  # bytes per write: between two of them a stop of the daemon is noticed, on a slow card within 0.1 s
LONGEST_HEADER = 8 * 2**20  # a context has at most 2^20 tokens (config), msgpack five bytes for each

_FIXED = struct.Struct("<8sII")
_DIGEST_BYTES = hashlib.sha256().digest_size
_START_BYTES = _FIXED.size + _DIGEST_BYTES

Buffer = bytes | bytearray | memoryview


class Damaged(Exception):
    """The file is not what was written."""


class Stopped(Exception):
    """The write was given up because the daemon ends."""


class Key(Struct, frozen=True):
    """Everything that makes a stored state wrong where it differs.

    model: `model_fingerprint` of the file.
    runtime: versions of llama.cpp and its bindings, and its system information: with other instructions of the CPU
        other kernels compute, and they round otherwise.
    context: parameters of the context: types of keys and values, flash attention, whatever the caller knows.
    """

    model: str
    runtime: str
    context: str


class Header(Struct, frozen=True):
    """What stands before a state. computed_s: seconds that computing it took; created: seconds since the epoch."""

    key: Key
    tokens: tuple[int, ...]
    n_bytes: int
    computed_s: float
    created: float
    digest: bytes


_decode_header = msgspec.msgpack.Decoder(Header).decode


def digest_of(data: Buffer) -> bytes:
    """SHA-256."""
    return hashlib.sha256(data).digest()


def most_bytes(n_tokens: int, n_bytes: int) -> int:
    """What a file with such a state has at most: five bytes a token in msgpack, the rest of the header in one KiB (its
    key is some hundred bytes of versions and settings)."""
    return n_bytes + 5 * n_tokens + 1024


def write(
    path: Path, header: Header, state: memoryview, used_at: float, go_on: Callable[[], bool] = lambda: True
) -> int:
    """Store a state under a name that appears with the last byte. Returns the bytes written.

    state: of bytes.
    used_at: becomes the file's modification time.
    go_on: asked between chunks.

    Raises:
        OSError: nothing has changed.
        Stopped: the same, because `go_on` said so.
    """
    encoded = msgspec.msgpack.encode(header)
    fixed = _FIXED.pack(MAGIC, VERSION, len(encoded))
    start = fixed + digest_of(fixed + encoded) + encoded
    unfinished = path.with_suffix(UNFINISHED)
    try:
        # 0600: the system texts of all agents are in it
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for chunk in (memoryview(start), *_chunks(state)):
                if not go_on():
                    raise Stopped
                _write_all(fd, chunk)
            os.utime(fd, (used_at, used_at))
            os.fsync(fd)
        finally:
            os.close(fd)
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    with contextlib.suppress(OSError):  # the name may be lost with the power; nothing else can come of it
        _sync_folder(path.parent)
    return len(start) + len(state)


def read_header(path: Path) -> Header:
    """The header of a file whose length fits it.

    Raises:
        OSError, Damaged
    """
    with path.open("rb", buffering=0) as file:
        return _header(file.fileno())[0]


def read(path: Path) -> tuple[Header, bytes]:
    """The header and the state behind it.

    Raises:
        OSError, Damaged
    """
    with path.open("rb") as file:
        header, at = _header(file.fileno())
        file.seek(at)
        state = file.read(header.n_bytes)
    if digest_of(state) != header.digest:
        raise Damaged("its state is not what was written")
    return header, state


def in_page_cache(path: Path) -> bool:
    """Whether the kernel has the file in memory, as far as four places of it show; False where it does not tell."""
    try:
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()
            last = os.fstat(fd).st_size - 1
            for i in range(4):
                os.preadv(fd, [bytearray(1)], max(0, last * i // 3), os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it would have to be read; EOPNOTSUPP: this file system cannot say
        return False
    return True


def _header(fd: int) -> tuple[Header, int]:
    """The header and where the state begins."""
    start = os.pread(fd, _START_BYTES, 0)
    if len(start) < _START_BYTES:
        raise Damaged("it ends in the middle of its header")
    magic, version, length = _FIXED.unpack_from(start)
    if magic != MAGIC:
        raise Damaged("it is no stored state")
    if version != VERSION:
        raise Damaged(f"it is of format {version}, not {VERSION}")
    if length > LONGEST_HEADER:
        raise Damaged("its header is not what was written")
    encoded = os.pread(fd, length, _START_BYTES)
    if digest_of(start[: _FIXED.size] + encoded) != start[_FIXED.size :]:
        raise Damaged("its header is not what was written")
    try:
        header = _decode_header(encoded)
    except (ValueError, RecursionError):  # also what is not UTF-8, or nested without end
        raise Damaged("its header means nothing") from None
    at = _START_BYTES + length
    if header.n_bytes < 0 or os.fstat(fd).st_size != at + header.n_bytes:
        raise Damaged("its length is not what was written")
    return header, at


def _chunks(state: memoryview) -> list[memoryview]:
    return [state[at : at + CHUNK] for at in range(0, len(state), CHUNK)]


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)  # the name, not only the bytes
    finally:
        os.close(fd)


def key_digest(key: Key) -> str:
    return hashlib.sha256(msgspec.msgpack.encode((VERSION, key))).hexdigest()[:16]


def file_name(key: Key, tokens: Sequence[int]) -> str:
    """The file's name: another format, key or list of tokens has another one, so what does not fit is not even seen."""
    return f"{key_digest(key)}-{hashlib.sha256(array('i', tokens).tobytes()).hexdigest()[:32]}{SUFFIX}"


def check_name(name: str, key: Key, header: Header) -> None:
    """Digests in names are short, and files can be renamed."""
    if header.key != key or name != file_name(key, header.tokens):
        raise Damaged("it holds something else than its name says")

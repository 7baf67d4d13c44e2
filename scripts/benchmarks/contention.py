"""Other programs on the board: tokens a second of one stream beside 0, 1, 2 and 4 processes that compute without end.

A stream runs on a quiet board for a moment, then the busy processes begin; what is counted are the tokens from two
seconds later on, for six seconds: how a server does once it has had time to settle, and no more. edged with threads on
"auto" takes turns with edged on fixed counts and with llama.cpp's server on its default, a thread for every core.
Tokens are those of the text that came (the peer's `/tokenize`), so it does not matter how many came in one piece.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import board, peers, streams
from benchmarks.calls import Connection
from benchmarks.concurrency import PEER_EXTRA
from benchmarks.figures import ratio, row
from benchmarks.peers import Settings
from benchmarks.report import Result, Row, say
from benchmarks.streams import TOPICS

BUSY = (0, 1, 2, 4)
QUIET_S = 1.0  # of the stream, before the busy processes begin
SETTLE_S = 2.0  # after they have begun, before tokens count
WINDOW_S = 6.0
PAUSE_S = 0.3  # between two streams: the server notices that nobody listens
MAX_TOKENS = 1500  # more than comes in that time
AUTO, PEER = "auto", "llama-server"
PEER_REACH = {1: "at least 2.0", 2: "", 4: "at least 4.0"}


@dataclass(frozen=True)
class Contestant:
    """A server. extra: what it needs beside the OpenAI fields."""

    name: str
    connection: Connection
    extra: dict[str, Any]


def run(*, rounds: int = 3, peer_bin: Path | None = None) -> Result:
    """Rows: what, edged, peer, ratio (edged / peer), least and largest of the rounds, to reach, n."""
    program = peers.llama_server(peer_bin)
    settings = Settings(model=board.model(), slots=1, context=board.CONTEXT, threads=board.threads())
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        contestants = [_edged(stack, folder, AUTO)]
        contestants += [_edged(stack, folder, str(count)) for count in _counts()]
        peer = stack.enter_context(peers.serving(program, settings, folder))
        contestants.append(Contestant(PEER, peer.connect(), PEER_EXTRA))
        tokenizer = peer.connect()
        for contestant in contestants:
            streams.read(contestant.connection, streams.question(TOPICS[0]), contestant.extra, 8)
        rows = [
            line
            for busy in BUSY
            for line in _rows(busy, [_round(contestants, tokenizer, busy, i, rounds) for i in range(rounds)])
        ]
    return Result(rows, {"peers": peers.about(program), "model": board.MODEL, "threads": board.threads()})


def _counts() -> list[int]:
    """The fixed counts worth comparing with."""
    cores = board.threads()
    return sorted({1, max(1, cores // 2), cores})


def _edged(stack: contextlib.ExitStack, folder: Path, threads: str) -> Contestant:
    own = folder / f"threads-{threads}"
    own.mkdir()
    board.write_plain_config(own, threads if threads.isdecimal() else f'"{threads}"')
    stack.enter_context(board.daemon(own))
    return Contestant(threads, board.http(own), {})


def _round(
    contestants: list[Contestant], tokenizer: Connection, busy: int, number: int, rounds: int
) -> dict[str, float]:
    """Tokens a second of each, one after the other, of the same answer: how well it can be guessed decides, too."""
    say(f"{busy} busy processes: round {number + 1} of {rounds}")
    question = streams.question(TOPICS[(number * len(BUSY) + BUSY.index(busy)) % len(TOPICS)])
    found = {}
    for contestant in contestants:
        found[contestant.name] = _rate(contestant, question, tokenizer, busy)
        time.sleep(PAUSE_S)
    return found


def _rows(busy: int, found: list[dict[str, float]]) -> list[Row]:
    fixed = [name for name in found[0] if name not in (AUTO, PEER)]
    best = max(fixed, key=lambda name: median(rates[name] for rates in found))

    def line(other: str, label: str, reach: str) -> Row:
        pairs = [(rates[AUTO], rates[other]) for rates in found]
        middle = [median(values) for values in zip(*pairs, strict=True)]
        return row(f"{busy} busy: tokens/s against {label}", *middle, ratio(pairs), reach, len(pairs))

    return [
        line(best, f"edged's best fixed count, {best}", "at least 0.90"),
        *(line(name, f"edged's fixed count {name}", "") for name in fixed if name != best),
        line(PEER, f"llama-server on {board.threads()}", PEER_REACH.get(busy, "")),
    ]


def _rate(contestant: Contestant, question: str, tokenizer: Connection, busy: int) -> float:
    """Tokens a second within the window. Where none came the answer is that of one: more than it was."""
    heard = _Heard(contestant, question)
    heard.first.wait(board.REQUEST_S)
    time.sleep(QUIET_S)
    with _busy(busy):
        began = time.perf_counter() + SETTLE_S
        time.sleep(SETTLE_S + WINDOW_S)
        ended = time.perf_counter()
        pieces = list(heard.pieces)
    heard.end()
    if not heard.listening and pieces:  # the model came to an end by itself
        ended = min(ended, pieces[-1][0])
    text = "".join(piece for at, piece in pieces if began <= at <= ended)
    tokens = len(tokenizer.post("/tokenize", {"content": text})["tokens"]) if text else 0
    return max(1, tokens) / max(ended - began, 1e-9)


class _Heard:
    """A stream that is read in a thread until `end`.

    pieces: (when it came, text). listening: it was still going on at `end`.
    """

    def __init__(self, contestant: Contestant, question: str) -> None:
        self._question = question
        self.pieces: list[tuple[float, str]] = []
        self.first = threading.Event()
        self.listening = True
        self._ending = False
        self._contestant = contestant
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def end(self) -> None:
        """Go away: the server stops."""
        self._ending = True
        self._thread.join()

    def _read(self) -> None:
        body = {
            "model": "small",
            "messages": [{"role": "user", "content": self._question}],
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            **self._contestant.extra,
        }
        connection = self._contestant.connection
        for at, event in connection.stream(streams.PATH, body):
            for choice in event.get("choices") or ():
                if text := choice["delta"].get("content"):
                    self.pieces.append((at, text))
                    self.first.set()
            if self._ending:
                connection.drop()
                return
        self.listening = False
        self.first.set()


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
        for process in spinning:
            process.wait()

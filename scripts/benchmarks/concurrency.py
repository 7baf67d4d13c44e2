"""Many streams at once: tokens a second against llama.cpp's servers, an interactive request amid batch work, loop lag.

Streams are chat completions of a plain model, greedy, 128 tokens each (llama.cpp's server is told to ignore the end of
the text; edged's prompts are such that the model goes on). Tokens are counted by the servers' own `usage`, and the rate
of many is from the first question to the last token. The bare loop is greedy decoding on the same bindings and nothing
else, compared with one stream after its first token.

Batch work are requests of an agent that write long answers, over the Unix socket with `priority` batch; the interactive
one is a short request of the same agent, streamed, and what counts is its first piece of text.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from benchmarks import board, peers, streams
from benchmarks.board import batch_streams
from benchmarks.calls import Connection, at_once
from benchmarks.figures import histogram_quantile, nearest_rank, ratio, row
from benchmarks.peers import Settings
from benchmarks.report import Result, Row, say
from benchmarks.streams import TOPICS, Stream
from edged.engines.llama import sizes

LEVELS = (1, 4, 8, 16)
SLOTS = 16
PYTHON_AT = 8  # streams at which llama_cpp.server is measured; it answers one at a time
IN_BARE_ROUND = 3  # single streams a round: their ratio is to be told to a hundredth
BATCH = 8
INTERACTIVE = 3  # a round, idle and busy
PATIENCE_S = 30.0  # a request without a piece of text by then is over, and counts as that long
LAG_S = 40.0
PEER_EXTRA = {"ignore_eos": True, "samplers": ["temperature"], "cache_prompt": True}

Read = Callable[[str], Stream]


def run(*, rounds: int = 3, peer_bin: Path | None = None) -> Result:
    """Rows: what, edged, peer, ratio (edged / peer), least and largest of the rounds, to reach, n."""
    program, python = peers.llama_server(peer_bin), peers.python_server()
    settings = Settings(model=board.model(), slots=SLOTS, context=board.CONTEXT, threads=board.threads())
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        board.write_plain_config(folder)
        with board.daemon(folder):
            rows = _one_stream(folder, rounds)
            rows += _interactive(folder, rounds)
            rows += _lag(folder)
            with peers.serving(program, settings, folder) as peer:
                ours = [_edged(folder) for _ in range(SLOTS)]
                theirs = [_peer(peer.connect()) for _ in range(SLOTS)]
                against = [row for level in LEVELS for row in _streams("llama-server", ours, theirs, level, rounds)]
            with peers.serving_python(python, settings, folder) as peer:
                theirs = [_python(peer.connect()) for _ in range(PYTHON_AT)]
                against += _streams("llama_cpp.server", ours, theirs, PYTHON_AT, rounds, "at least 3.0")
    about = {"peers": peers.about(program, python), "model": board.MODEL, "threads": board.threads()}
    return Result([*against, *rows], about)


# -- tokens a second ---------------------------------------------------------------------------------------------------


def _streams(
    name: str, ours: list[Read], theirs: list[Read], level: int, rounds: int, reach: str = "at least 1.00"
) -> list[Row]:
    _together(ours, 1)
    _together(theirs, 1)
    taken: list[tuple[list[Stream], list[Stream]]] = []
    for number in range(rounds):
        say(f"{level} streams, {name}: round {number + 1} of {rounds}")
        taken.append((_together(ours, level), _together(theirs, level)))
    rates = [(streams.rate(edged), streams.rate(peer)) for edged, peer in taken]
    edged, peer = ([s.tokens for pair in taken for s in pair[side]] for side in (0, 1))
    middle = [median(values) for values in zip(*rates, strict=True)]
    return [
        row(f"{level} streams, {name}: tokens/s", *middle, ratio(rates), reach, rounds),
        row(f"{level} streams, {name}: tokens of an answer, fewest", min(edged), min(peer), n=len(edged)),
    ]


def _together(readers: list[Read], level: int) -> list[Stream]:
    chosen = itertools.islice(zip(readers, TOPICS, strict=False), level)
    return at_once([lambda read=read, topic=topic: read(streams.question(topic)) for read, topic in chosen])


def _edged(folder: Path) -> Read:
    connection = board.http(folder)
    return lambda text: streams.read(connection, text, {})


def _peer(connection: Connection) -> Read:
    return lambda text: streams.read(connection, text, PEER_EXTRA)


def _python(connection: Connection) -> Read:
    return lambda text: streams.read(connection, text, {})


def _one_stream(folder: Path, rounds: int) -> list[Row]:
    """One stream after its first token, against the bare loop."""
    read = _edged(folder)
    with _bare_loop() as bare:
        read(streams.question(TOPICS[0]))
        bare(streams.question(TOPICS[0]))
        rates: list[tuple[float, float]] = []
        for number in range(rounds):
            say(f"one stream and the bare loop: round {number + 1} of {rounds}")
            for topic in TOPICS[:IN_BARE_ROUND]:
                text = streams.question(topic)
                rates.append((read(text).decode_rate, bare(text)))
    middle = [median(values) for values in zip(*rates, strict=True)]
    return [row("1 stream, bare loop: tokens/s after the first", *middle, ratio(rates), "at least 0.97", len(rates))]


@contextlib.contextmanager
def _bare_loop() -> Iterator[Callable[[str], float]]:
    """Tokens a second of a question."""
    numbers = (sizes.context_cells(board.CONTEXT), sizes.BATCH_TOKENS, board.threads(), streams.TOKENS)
    script = Path(__file__).parent / "bare_loop.py"
    command = [sys.executable, str(script), str(board.model()), *map(str, numbers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ask, answer = process.stdin, process.stdout

        def rate(text: str) -> float:
            prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            ask.write(json.dumps(prompt) + "\n")
            ask.flush()
            return float(answer.readline())

        try:
            yield rate
        finally:
            process.terminate()


# -- an interactive request amid batch work ----------------------------------------------------------------------------


def _interactive(folder: Path, rounds: int) -> list[Row]:
    idle, busy = [], []
    _first_piece_ms(folder)
    for number in range(rounds):
        say(f"an interactive request amid {BATCH} batch streams: round {number + 1} of {rounds}")
        idle += [_first_piece_ms(folder) for _ in range(INTERACTIVE)]
        with batch_streams(folder, BATCH) as running:
            busy += [_first_piece_ms(folder) for _ in range(INTERACTIVE)]
            still = running()
    pairs = list(zip(busy, idle, strict=True))
    return [
        {
            **row(
                f"first piece of text amid {BATCH} batch streams (edged) and when idle (peer), ms",
                median(busy),
                median(idle),
                ratio([(median(busy), median(idle))]),
                "at most 2.00",
                len(pairs),
            ),
            "least to most": f"{min(busy):.0f} to {max(busy):.0f} ms",
        },
        row("batch streams under way meanwhile", still, "", n=rounds),
    ]


_asked = itertools.count(1)


def _first_piece_ms(folder: Path) -> float:
    """Of a short request that nobody asked before."""
    first: list[float] = []
    text = f"In one short sentence: what comes after the number {next(_asked) * 7}?"
    with board.client(folder) as client:
        began = time.perf_counter()
        client.ask(
            text,
            agent="talker",
            max_tokens=16,
            deadline_s=PATIENCE_S,
            on_text=lambda _: first.append(time.perf_counter()),
        )
    return (first[0] - began if first else PATIENCE_S) * 1000


# -- lag of the event loop ---------------------------------------------------------------------------------------------


def _lag(folder: Path) -> list[Row]:
    say(f"lag of the event loop while {BATCH} streams run: {LAG_S:.0f} s")
    stop = threading.Event()

    def keep_reading(topic: str) -> None:
        connection = board.http(folder)
        while not stop.is_set():
            streams.read(connection, streams.question(topic), {})

    readers = [threading.Thread(target=keep_reading, args=(topic,)) for topic in TOPICS[:BATCH]]
    before = _lag_buckets(folder)
    for reader in readers:
        reader.start()
    command = [sys.executable, str(Path(__file__).parent / "pinger.py"), str(folder / "run" / "edged.sock"), str(LAG_S)]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    pings = json.loads(told)
    buckets = [(bound, count - old) for (bound, count), (_, old) in zip(_lag_buckets(folder), before, strict=True)]
    return [
        row(
            "99th percentile of a ping from outside, ms", nearest_rank(pings, 0.99), "", reach="below 20", n=len(pings)
        ),
        row("median of it, ms", median(pings), "", n=len(pings)),
        row(
            "99th percentile of edged_loop_lag_seconds, ms",
            histogram_quantile(buckets, 0.99) * 1000,
            "",
            reach="below 20",
            n=int(buckets[-1][1]),
        ),
    ]


def _lag_buckets(folder: Path) -> list[tuple[float, float]]:
    """(upper bound in seconds, cumulative count) of the metric."""
    connection = board.http(folder)
    text = connection.get("/metrics")[1].decode()
    connection.close()
    found = []
    for line in text.splitlines():
        if line.startswith("edged_loop_lag_seconds_bucket"):
            label, count = line.rsplit(" ", 1)
            found.append((float(label.split('le="')[1].split('"')[0]), float(count)))
    return found

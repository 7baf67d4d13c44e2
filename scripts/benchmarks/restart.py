"""From nothing to a tool call's answer: a warm server is killed, started again and asked, against llama.cpp's server.

The time runs from exec to the answer, load included; weights and states come from the page cache for both. edged gets a
few idle seconds before it is killed, as it writes states of prefixes when it has nothing else to do. The peer starts
without its warm-up run, which only delays the first answer.

The prefix part is what the first request's prompt took longer than that of warm ones. llama.cpp's server computes the
prefix again. Its client can also save a slot to a file and have it restored: rows of their own, as what a server does
by itself is one thing and what its client does for it another.
"""

from __future__ import annotations

import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import board, peers, toolcall, workload
from benchmarks.calls import Connection
from benchmarks.figures import ratio, row
from benchmarks.peers import Program, Settings
from benchmarks.report import Result, Row, say
from edged.client import Client

# The first one after the start, and what warm requests take is measured with the others: of about the same length, but
# nothing that a cache of the first one's prompt would serve.
FIRST, *WARM = (
    "Turn on the light in the office.",
    "Please let in some sun right now.",
    "Run the kitchen fan at high speed.",
)
IDLE_S = 3.0  # after the last request: the state of a prefix is written within the first
POLL_S = 0.002
START_S = 60.0
SLOT_FILE = "house.bin"


@dataclass
class Life:
    """One start. Milliseconds; of the prompts: what the server says of their computation.

    restore_ms: what the client's call to restore a slot took, where there was one.
    """

    whole_ms: float = 0.0
    up_ms: float = 0.0  # of it, until it could be asked
    first_prompt_ms: float = 0.0
    warm_prompt_ms: list[float] = field(default_factory=list)
    load_ms: float = 0.0
    restore_ms: float | None = None

    @property
    def prefix_ms(self) -> float:
        """What the prefix took."""
        return self.first_prompt_ms - mean(self.warm_prompt_ms) if self.restore_ms is None else self.restore_ms


def run(*, rounds: int = 7, peer_bin: Path | None = None) -> Result:
    """Rows: what, edged, peer, ratio (edged / peer), least and largest of the rounds, to reach, n."""
    program = peers.llama_server(peer_bin)
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        workload.write_config(folder, board.models_dir(), board.SOURCE, board.CONTEXT)
        prompting = board.Prompting(folder)
        peer = _Peer(program, folder, prompting)
        saving = _Peer(program, folder, prompting, saves=True)
        for contestant in ("edged, once to warm up", "llama-server, once to save its slot"):
            say(contestant)
            _edged(folder) if contestant.startswith("edged") else saving.live()
        lives: list[tuple[Life, Life, Life]] = []
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            lives.append((_edged(folder), peer.live(), saving.live()))
    rows = [
        *_rows("llama-server", [(ours, theirs) for ours, theirs, _ in lives], ("at most 0.25", "at most 0.05")),
        *_rows("llama-server, its client restores a slot", [(ours, theirs) for ours, _, theirs in lives], ("", "")),
        row("of edged's: loading the model, ms", median(ours.load_ms for ours, _, _ in lives), "", n=rounds),
    ]
    return Result(rows, {"peers": peers.about(program), "model": board.MODEL, "threads": board.threads()})


def _rows(against: str, lives: list[tuple[Life, Life]], reach: tuple[str, str]) -> list[Row]:
    def line(what: str, of: str, reach: str, *, compared: bool = True) -> Row:
        pairs = [(getattr(ours, of), getattr(theirs, of)) for ours, theirs in lives]
        ours, theirs = (median(values) for values in zip(*pairs, strict=True))
        return row(f"{against}: {what}", ours, theirs, ratio(pairs) if compared else None, reach, len(pairs))

    return [
        line("exec to answer, ms", "whole_ms", reach[0]),
        line("the prefix part, ms", "prefix_ms", reach[1], compared=bool(reach[1])),
        line("exec until it can be asked, ms", "up_ms", "", compared=False),
    ]


def _edged(folder: Path) -> Life:
    """A life of the daemon, ended by SIGKILL."""
    began = time.perf_counter()
    with board.killable(folder) as process, _connected(folder) as client:
        life = Life(up_ms=_ms(began))
        reply = _asked(client, FIRST)
        life.whole_ms = _ms(began)
        life.load_ms, life.first_prompt_ms = reply["timing"]["load_ms"], reply["timing"]["prefill_ms"]
        life.warm_prompt_ms = [_asked(client, text)["timing"]["prefill_ms"] for text in WARM]
        time.sleep(IDLE_S)
        process.kill()
    return life


def _asked(client: Client, text: str) -> dict[str, Any]:
    reply = client.ask(text, agent="house")
    if reply["status"] != "done":
        raise peers.PeerError(f"edged did not answer: {reply['error']}")
    return reply


def _connected(folder: Path) -> Client:
    """As soon as the socket answers: the one of the life before lies there still, and refuses."""
    until = time.monotonic() + START_S
    while True:
        try:
            return board.client(folder)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_S)


class _Peer:
    """llama.cpp's server, started again and again.

    Args:
        saves: its client saves the slot before the kill and restores it before the first request.
    """

    def __init__(self, program: Program, folder: Path, prompting: board.Prompting, *, saves: bool = False) -> None:
        self._program, self._folder, self._prompting, self._saves = program, folder, prompting, saves
        self._schema = prompting.schema()
        self._settings = Settings(
            model=board.model(),
            slots=1,
            context=board.CONTEXT,
            threads=board.threads(),
            warm_up=False,
            slot_save_path=folder if saves else None,
        )

    def live(self) -> Life:
        """One life, ended by SIGKILL."""
        began = time.perf_counter()
        peer = peers.start(self._program, self._settings, self._folder)
        try:
            life = Life(up_ms=_ms(began))
            connection = peer.connect()
            if self._saves and (self._folder / SLOT_FILE).exists():
                restoring = time.perf_counter()
                connection.post("/slots/0?action=restore", {"filename": SLOT_FILE})
                life.restore_ms = _ms(restoring)
            life.first_prompt_ms = self._asked(connection, FIRST)
            life.whole_ms = _ms(began)
            life.warm_prompt_ms = [self._asked(connection, text) for text in WARM]
            if self._saves:
                connection.post("/slots/0?action=save", {"filename": SLOT_FILE})
        finally:
            peer.stop(signal.SIGKILL)
        return life

    def _asked(self, connection: Connection, text: str) -> float:
        """Milliseconds of its prompt."""
        done = connection.post("/completion", toolcall.completion(self._prompting.prompt(text), self._schema))
        prompt_ms: float = done["timings"]["prompt_ms"]
        return prompt_ms


def _ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000

"""A tool call from question to answer, warm, against llama.cpp's server with the same JSON Schema and its prompt cache.

The peer is asked in three ways, each from slots of its own that hold the prefix:

* the same prompt: the prompt of a model that no adapter has taught, its tools' examples included, sent to `/completion`
  up to where the JSON of the call begins;
* response_format: a chat completion with system text and tools, as a client without edged would ask (no examples);
* our weights, prompt and grammar (`own_way`): a second server with what edged itself uses. It is not what anybody has
  who does not use edged; it shows what all around the decision costs.

The peer returns the call's JSON; edged has accepted the request durably, written the journal, run the tool in SQLite
and settled the answer by then. Its calls are counted with the marks around them, which the peer need not write. Blocks
of requests take turns.
"""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks import board, own_way, peers, workload
from benchmarks.calls import at_once
from benchmarks.figures import Ratio, p95, ratio_of_means, row
from benchmarks.peers import Peer, Settings
from benchmarks.report import Result, Row, say
from benchmarks.workload import REQUESTS, Call, parsed, same

CLIENTS = {1: 10, 4: 30}  # clients at once: requests of a block. A block of many clients is longer than its ragged end
# Of a request, another one each round: else its prompt is there as a whole, and nobody asks thirty things twice.
OPENINGS = ("", "Please: ", "Now: ", "Hey! ", "OK, next. ", "Do this: ", "Well, ", "One more: ")
MAX_TOKENS = 128  # of a call: four times what the longest one needs
REACH = 1 / 3
WAYS = 2  # in which the first peer is asked
GREEDY = {"temperature": 0, "samplers": ["temperature"], "cache_prompt": True}  # no sampler but the likeliest token


@dataclass(frozen=True)
class Answer:
    """One request. tokens: what the call took beyond the prompt; steps: of the model, 0 where nobody tells."""

    ms: float
    right: bool
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    steps: int = 0


Ask = Callable[[str, Call], Answer]


def run(*, rounds: int = 3, peer_bin: Path | None = None) -> Result:
    """Rows: what, edged, peer, ratio (edged / peer), least and largest of its blocks, to reach, n."""
    program = peers.llama_server(peer_bin)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        workload.write_config(folder, board.models_dir(), board.SOURCE, board.CONTEXT)
        prompting, own, merged = board.Prompting(folder), own_way.Prompting(folder), own_way.weights()
        with board.daemon(folder):
            for clients, block in CLIENTS.items():
                settings = Settings(
                    model=board.model(), slots=clients * WAYS, context=board.CONTEXT, threads=board.threads()
                )
                taught = replace(settings, model=merged, slots=clients)
                with peers.serving(program, settings, folder) as peer, peers.serving(program, taught, folder) as second:
                    sides = {
                        "edged": [_edged(folder) for _ in range(clients)],
                        "the same prompt": [_same_prompt(peer, prompting, slot) for slot in range(clients)],
                        "response_format": [_response_format(peer, prompting, clients + i) for i in range(clients)],
                        "our weights, prompt and grammar": [_own_way(second, own, slot) for slot in range(clients)],
                    }
                    rows += _compare(sides, clients, block, rounds)
    return Result(rows, {"peers": peers.about(program), "model": board.MODEL, "threads": board.threads()})


def _compare(named: dict[str, list[Ask]], clients: int, block: int, rounds: int) -> list[Row]:
    sides = list(named.values())
    many = f"{clients} client{'s' if clients > 1 else ''}"
    say(f"{many}: warming up")
    for asks in sides:
        for ask in asks:  # one by one: every slot has its prefix then
            ask(*REQUESTS[0])
        _block(asks, REQUESTS[:clients])
    answers: list[list[list[Answer]]] = [[] for _ in sides]
    for number in range(rounds):
        say(f"{many}: round {number + 1} of {rounds}")
        asked = [(f"{OPENINGS[(number + clients) % len(OPENINGS)]}{text}", call) for text, call in REQUESTS]
        for start in range(0, len(asked), block):
            for taken, asks in zip(answers, sides, strict=True):
                taken.append(_block(asks, asked[start : start + block]))
    ours, *theirs = answers
    _, *ways = named
    return [row for way, their in zip(ways, theirs, strict=True) for row in _rows(f"{many}, {way}", ours, their)]


def _rows(against: str, ours: list[list[Answer]], theirs: list[list[Answer]]) -> list[Row]:
    blocks = [([a.ms for a in one], [a.ms for a in other]) for one, other in zip(ours, theirs, strict=True)]
    edged, peer = [a for one in ours for a in one], [a for one in theirs for a in one]
    n = len(edged)

    def line(what: str, of: Callable[[Sequence[Answer]], Any], ratio: Ratio | None = None, reach: str = "") -> Row:
        return row(f"{against}: {what}", of(edged), of(peer), ratio, reach, n)

    return [
        line("mean, ms", lambda a: mean(x.ms for x in a), ratio_of_means(blocks), f"at most {REACH:.2f}"),
        line("median, ms", lambda a: median(x.ms for x in a)),
        line("95th percentile, ms", lambda a: p95([x.ms for x in a])),
        line("right calls", lambda a: sum(x.right for x in a)),
        line("tokens of a call, mean", lambda a: mean(x.tokens for x in a)),
        line("steps of the model for it, mean", lambda a: mean(x.steps for x in a)),
        line("prompt tokens, median", lambda a: median(x.prompt_tokens for x in a)),
        line("of them not cached, median", lambda a: median(x.prompt_tokens - x.cached_tokens for x in a)),
    ]


def _block(contestants: list[Ask], requests: Sequence[tuple[str, Call]]) -> list[Answer]:
    """The requests, answered by as many clients at once as there are; each takes the next when it is free."""
    todo: queue.SimpleQueue[tuple[str, Call]] = queue.SimpleQueue()
    for request in requests:
        todo.put(request)

    def work(ask: Ask) -> list[Answer]:
        answers = []
        while True:
            try:
                request = todo.get_nowait()
            except queue.Empty:
                return answers
            answers.append(ask(*request))

    return [answer for answers in at_once([partial(work, ask) for ask in contestants]) for answer in answers]


def _edged(folder: Path) -> Ask:
    client = board.client(folder)

    def ask(text: str, wanted: Call) -> Answer:
        began = time.perf_counter()
        reply = client.ask(text, agent="house")
        ms = (time.perf_counter() - began) * 1000
        usage = reply["usage"]
        made = [(call["name"], call["arguments"]) for call in reply["tool_calls"] if call["ok"]]
        return Answer(
            ms,
            same(made[0] if len(made) == 1 else None, wanted),
            usage["completion_tokens"],
            usage["prompt_tokens"],
            usage["cached_tokens"],
            usage["decode_steps"],
        )

    return ask


def _same_prompt(peer: Peer, prompting: board.Prompting, slot: int) -> Ask:
    connection, schema = peer.connect(), prompting.schema()

    def ask(text: str, wanted: Call) -> Answer:
        body = completion(prompting.prompt(text), schema) | {"id_slot": slot}
        began = time.perf_counter()
        done = connection.post("/completion", body)
        return _answer(began, parsed(done["content"]), wanted, done["timings"])

    return ask


def _response_format(peer: Peer, prompting: board.Prompting, slot: int) -> Ask:
    connection, shape = peer.connect(), {"name": "call", "schema": prompting.schema()}

    def ask(text: str, wanted: Call) -> Answer:
        body = {
            "messages": [{"role": "system", "content": prompting.system}, {"role": "user", "content": text}],
            "response_format": {"type": "json_schema", "json_schema": shape},
            "max_tokens": MAX_TOKENS,
            **GREEDY,
            "id_slot": slot,
        }
        began = time.perf_counter()
        done = connection.post("/v1/chat/completions", body)
        return _answer(began, parsed(done["choices"][0]["message"]["content"]), wanted, done["timings"])

    return ask


def _own_way(peer: Peer, prompting: own_way.Prompting, slot: int) -> Ask:
    connection = peer.connect()

    def ask(text: str, wanted: Call) -> Answer:
        body = {"prompt": prompting.prompt(text), "grammar": prompting.grammar, "n_predict": MAX_TOKENS}
        began = time.perf_counter()
        done = connection.post("/completion", {**body, **GREEDY, "id_slot": slot})
        return _answer(began, own_way.call(done["content"]), wanted, done["timings"])

    return ask


def _answer(began: float, made: Call | None, wanted: Call, timings: dict[str, Any]) -> Answer:
    """Of llama.cpp's server. Each token is a step there."""
    ms = (time.perf_counter() - began) * 1000
    tokens, cached = timings["predicted_n"], timings["cache_n"]
    return Answer(ms, same(made, wanted), tokens, cached + timings["prompt_n"], cached, tokens)


def completion(prompt: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request for one call to llama.cpp's server."""
    return {"prompt": prompt, "json_schema": schema, "n_predict": MAX_TOKENS, **GREEDY}

"""A client's system text of 1,500 tokens with a line at its top that changes: how long its requests take, and whether
answers are as right as where all of it is computed again (`reuse = "none"`).

Time: each request comes with another line, and asks another thing. Answers: half of the questions ask for what the
changed lines say, half for the rest of the text, each of as many home plans as `CHANGES` times. An answer is right when
it has the word that is asked for and none of the words it could be mistaken for.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from msgspec import Struct

from benchmarks import board
from benchmarks.ipc import daemon
from benchmarks.report import Result, Row, say

ALIASES = {"exact": "moved", "none": "whole"}  # reuse: the model's alias
ROOMS = ("kitchen", "bathroom", "cellar", "attic", "garage", "nursery", "study", "hall", "pantry", "workshop")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
THINGS = (
    "piano",
    "printer",
    "freezer",
    "aquarium",
    "safe",
    "sewing machine",
    "telescope",
    "cradle",
    "wine rack",
    "drill",
)
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "grey", "brown")
FILLING = 22  # lines of each kind that nobody asks for: 1,500 tokens in all
CHANGES = 20  # of the changing lines, and five questions of either kind with each
TIMED = 6  # requests, of which the first two are what they are
REACH = 0.25  # of the first request's time, from the third on
MAX_TOKENS = 24


class Question(Struct, frozen=True):
    """right: the word of a right answer. wrong: words that none has."""

    text: str
    right: str
    wrong: tuple[str, ...]
    changed: bool


def run(*, rounds: int = CHANGES) -> Result:
    """Rows: what, both ways, and what is to be reached."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
        folder = Path(name)
        _configure(folder)
        with daemon(folder):
            times = {alias: _times(folder, alias) for alias in ALIASES.values()}
            right = {alias: _answers(folder, alias, rounds) for alias in ALIASES.values()}
    return Result([*_time_rows(times), *_right_rows(right)], {"model": board.MODEL, "threads": board.threads()})


def _configure(folder: Path) -> None:
    tables = "".join(
        f'[models.{alias}]\nsource = "{board.SOURCE}"\ncontext = {board.CONTEXT}\nreuse = "{reuse}"\n'
        for reuse, alias in ALIASES.items()
    )
    (folder / "edged.toml").write_text(
        f'[node]\nid = "bench"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        f'models_dir = "{board.models_dir()}"\n[http]\nlisten = ["unix:http.sock"]\n{tables}'
    )


def _home(change: int, seed: str) -> tuple[str, list[Question]]:
    """A home's text in its state number `change`, and what may be asked of it."""
    plan, now = Random(seed), Random(f"{seed}.{change}")  # noqa: S311 - no secret hangs on it
    things = dict(zip(plan.sample(THINGS, 5), plan.sample(ROOMS, 5), strict=True))
    person, room, colour = now.choice(NAMES), now.choice(ROOMS), now.choice(COLOURS)
    clock = f"{now.randrange(24):02}:{now.randrange(60):02}"
    guests = str(now.randrange(2, 10))
    top = [
        f"The time is {clock}.",
        f"{person} is at home, in the {room}, with {guests} guests.",
        f"The lamp at the door is {colour} now.",
    ]
    filling = []
    for number in range(1, FILLING + 1):
        filling.append(f"Lamp {number} belongs to circuit {plan.randrange(100, 999)}: {plan.randrange(3, 60)} watts.")
        side = plan.choice(("north", "south", "east", "west"))
        filling.append(f"Window {number} faces {side} and is {plan.randrange(60, 220)} cm wide.")
    kept = [f"The {thing} stands in the {where}." for thing, where in things.items()]
    text = "\n".join(["You run a home. Answer in a few words.", *top, *filling, *kept])

    def others(words: Sequence[str], own: str) -> tuple[str, ...]:
        return tuple(word for word in words if word != own)

    return text, [
        Question("What time is it?", clock, (), True),
        Question("Who is at home?", person, others(NAMES, person), True),
        Question(f"In which room is {person}?", room, others(ROOMS, room), True),
        Question("How many guests are there?", guests, (), True),
        Question("What colour does the lamp at the door have?", colour, others(COLOURS, colour), True),
        *(Question(f"Where is the {thing}?", where, others(ROOMS, where), False) for thing, where in things.items()),
    ]


def _times(folder: Path, alias: str) -> list[float]:
    connection, taken = board.http(folder), []
    connection.post("/v1/chat/completions", _body(alias, "Say hello.", "Hello."))  # the model is loaded by then
    for change in range(TIMED):
        text, questions = _home(change, "timed")
        began = time.perf_counter()
        connection.post("/v1/chat/completions", _body(alias, text, questions[change % len(questions)].text))
        taken.append((time.perf_counter() - began) * 1000)
    say(f"{alias}: {', '.join(f'{ms:.0f}' for ms in taken)} ms")
    return taken


def _answers(folder: Path, alias: str, changes: int) -> list[tuple[bool, bool]]:
    """(of a changed line, right) of each question."""
    connection, found = board.http(folder), []
    for change, question in itertools.chain.from_iterable(
        ((change, question) for question in _home(change, "asked")[1]) for change in range(changes)
    ):
        done = connection.post("/v1/chat/completions", _body(alias, _home(change, "asked")[0], question.text))
        said = done["choices"][0]["message"]["content"].casefold()
        right = question.right.casefold() in said and not any(word.casefold() in said for word in question.wrong)
        found.append((question.changed, right))
        if not right:
            say(f"{alias}: {question.text} {question.right}: {said!r}")
    return found


def _body(alias: str, system: str, question: str) -> dict[str, object]:
    asked = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"model": alias, "messages": asked, "temperature": 0, "max_tokens": MAX_TOKENS}


def _time_rows(times: dict[str, list[float]]) -> list[Row]:
    rows: list[Row] = []
    for number, what in enumerate(("first request, ms", "second, ms", "third and later, median ms")):
        values = {alias: taken[number : number + 1] if number < 2 else taken[2:] for alias, taken in times.items()}
        rows.append({"what": what, **{alias: round(statistics.median(taken)) for alias, taken in values.items()}})
    shares = {alias: statistics.median(taken[2:]) / taken[0] for alias, taken in times.items()}
    reach = {"to reach": f"moved at most {REACH}"}
    rows.append({"what": "third and later of the first", **{k: round(v, 2) for k, v in shares.items()}, **reach})
    return rows


def _right_rows(right: dict[str, list[tuple[bool, bool]]]) -> list[Row]:
    rows: list[Row] = []
    for what, wanted in (("of changed lines", True), ("of the rest", False)):
        of = {alias: [good for changed, good in found if changed is wanted] for alias, found in right.items()}
        shown = {alias: f"{sum(found)} of {len(found)}" for alias, found in of.items()}
        rows.append({"what": f"right answers {what}", **shown, "to reach": "the same within a point"})
    return rows

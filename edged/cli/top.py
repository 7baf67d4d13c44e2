"""`edged top`: the daemon, live."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from edged.cli.common import AsJson, ConfigFile, Socket, row, shown, size, span, table, when
from edged.cli.connection import daemon, socket_path
from edged.cli.outcome import print_json
from edged.cli.view import broker_text, event_line, fault_lines, pressure_lines, queue_text, status_lines, upstream_text
from edged.client import AsyncClient, EdgedCallError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

REFRESH_S = 1.0
PATIENCE_S = 5.0  # a daemon that answers later than this is said not to answer; it is asked again all the same
EVENTS = 100  # kept; a screen shows as many as it has lines for
BAR = 30  # characters of the memory bar


def top(
    once: Annotated[bool, typer.Option("--once", help="Print what is now, and end.")] = False,
    as_json: AsJson = False,
    socket: Socket = None,
    config_file: ConfigFile = None,
) -> None:
    """Watch the daemon: memory, models, requests, links, events. q ends it; without a terminal: what is now."""
    with daemon(socket, config_file, as_json) as client:
        state = client.call("status")
    if as_json:
        print_json(state)
    elif once or not sys.stdout.isatty():
        print("\n".join(status_lines(state)))
    else:
        asyncio.run(_Top(socket_path(socket, config_file)[0], state).run())


class _Top:
    """The live view: what is known of the daemon.

    rates: tokens a second of each loaded model, between the last two looks at it. What a phase of it makes while it
        lasts stands beside it, as the daemon measured it.
    """

    def __init__(self, where: str, state: dict[str, Any]) -> None:
        self._where = where
        self._state = state
        self._seen_at = time.monotonic()
        self._rates: dict[str, float] = {}
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._trouble: str | None = None

    async def run(self) -> None:
        """Until q, Ctrl-C or a signal; the terminal is left as it was."""
        from rich.console import Console
        from rich.live import Live

        ended = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # else the terminal would be left without echo
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        console = Console()
        with _keys(ended.set), Live(console=console, screen=True, auto_refresh=False) as live:
            watching = asyncio.create_task(self._watch(live, console), name="edged.top")
            waiting = asyncio.create_task(ended.wait(), name="edged.top.end")
            await asyncio.wait([watching, waiting], return_when=asyncio.FIRST_COMPLETED)
            for task in (watching, waiting):
                task.cancel()
            await asyncio.wait([watching, waiting])
        if not watching.cancelled():
            watching.result()  # a bug

    async def _watch(self, live: Live, console: Console) -> NoReturn:
        """Look and draw, once a second; a daemon that goes away is waited for."""
        while True:
            try:
                async with AsyncClient(self._where, on_event=self._happened) as client:
                    await self._patiently(client, "events.subscribe")
                    while True:
                        self._look(await self._patiently(client, "status"))
                        await self._draw(live, console)
            except (OSError, EdgedCallError) as error:
                self._trouble = f"the daemon does not answer ({str(error) or 'it takes too long'}); trying again"
                await self._draw(live, console)

    async def _patiently(self, client: AsyncClient, method: str) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            return await client.call(method)

    def _look(self, state: dict[str, Any]) -> None:
        now, before = time.monotonic(), self._state["engine"]
        for name, engine in state["engine"].items():
            kind = (
                "generated_tokens" if "generated_tokens" in engine else "prompt_tokens"
            )  # an embedding model only reads
            made = engine[kind] - before.get(name, engine).get(kind, 0)
            self._rates[name] = max(0, made) / max(now - self._seen_at, REFRESH_S / 2)  # a reload begins at 0
        self._state, self._seen_at, self._trouble = state, now, None

    def _happened(self, event: dict[str, Any]) -> None:
        self._events.appendleft(f"{when(time.time())}  {event_line(event)}")

    async def _draw(self, live: Live, console: Console) -> None:
        live.update(self._screen(console.size.height), refresh=True)
        await asyncio.sleep(REFRESH_S)

    def _screen(self, height: int) -> RenderableType:
        from rich.console import Group

        state = self._state
        above = [
            _text(f"edged {state['version']} on {state['node']}, pid {state['pid']}, up {span(state['uptime_s'])}"),
            _text(self._trouble or "", "bold red"),
            _text(f"memory    {_bar(state['memory'])}"),
            *(_text(told) for told in pressure_lines(state.get("pressure"))),
            _text(f"requests  {queue_text(state['queue'])}"),
            *(_text(told) for told in fault_lines(state)),
            *(_text(f"broker    {broker_text(link)}") for link in (state["mqtt"],) if link),
            *(_text(f"upstream  {name}: {upstream_text(link)}") for name, link in state["link"].items()),
            _text(""),
        ]
        models = self._models()
        below = [_text(""), _text("events, newest first", "dim"), *map(_text, self._events)]
        left = height - len(above) - models.row_count - 1 - 1
        return Group(*above, models, *below[: max(0, left)], _text("q ends", "dim"))

    def _models(self) -> Any:
        listing = table(
            *("model", "state", "size", "users", "threads", "tokens/s", "prefill", "decode", ""),
            right=("size", "users", "threads", "tokens/s", "prefill", "decode"),
        )
        for name, model in self._state["models"].items():
            engine = self._state["engine"].get(name)
            taken = size(model["predicted_bytes"]) if model["predicted_bytes"] else ""
            busy = (engine["threads"], f"{self._rates.get(name, 0.0):.1f}") if engine else ("", "")
            speed = (engine.get(f"{phase}_tokens_s") if engine else None for phase in ("prefill", "decode"))
            told = (f"{rate:.0f}" if rate else "" for rate in speed)
            row(listing, name, model["state"], taken, model["in_use"], *busy, *told, "")
        return listing


def _text(text: str, style: str = "") -> Any:
    """One line of the screen, cut where the screen ends."""
    from rich.text import Text

    return Text(shown(text), style=style, no_wrap=True, overflow="ellipsis")


def _bar(memory: dict[str, Any]) -> str:
    """What is taken of the budget, drawn, and in numbers."""
    taken = memory["private_bytes"] + memory["mapped_bytes"]
    part = min(1.0, taken / max(1, memory["budget_bytes"]))
    drawn = "#" * round(part * BAR)
    return (
        f"{drawn:-<{BAR}} {size(taken)} of {size(memory['budget_bytes'])}, "
        f"{size(memory['available_bytes'])} available on the board"
    )


@contextlib.contextmanager
def _keys(end: Callable[[], object]) -> Iterator[None]:
    """Keys come at once and are not echoed while this lasts; q ends."""
    import termios
    import tty

    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    loop, keyboard = asyncio.get_running_loop(), sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)

    def pressed() -> None:
        keys = os.read(keyboard, 1024)
        if not keys or b"q" in keys.lower():
            loop.remove_reader(keyboard)  # a terminal that hung up would be ready for ever
            end()

    tty.setcbreak(keyboard)
    loop.add_reader(keyboard, pressed)
    try:
        yield
    finally:
        loop.remove_reader(keyboard)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)

"""Lines of the log, as a person and as journald reads them."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any

import pytest

from edged.host import log
from edged.host.log import Formatter, request_id


def line(text: str = "hello %s", *, under_systemd: bool, level: int = logging.INFO, **extra: Any) -> str:
    """A record as it is written."""
    record = logging.getLogger("edged.x").makeRecord("edged.x", level, "f.py", 1, text, ("you",), None, extra=extra)
    return Formatter(under_systemd=under_systemd).format(record)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2), (25, 6)],
)
def test_line_under_systemd_starts_with_its_priority_and_has_no_time(level: int, priority: int) -> None:
    """journald adds the time itself."""
    assert line(under_systemd=True, level=level) == f"<{priority}>edged.x: hello you"


def test_line_elsewhere_has_time_and_level() -> None:
    """A terminal shows when it was."""
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} warning edged\.x: hello you", line(under_systemd=False, level=30))


def test_line_carries_the_fields_and_the_rid_of_the_request() -> None:
    """The rid comes from the context, and is not repeated where the event names one."""
    token = request_id.set("r1")
    try:
        assert line(under_systemd=True, agent="house").endswith("hello you agent=house rid=r1")
        assert line(under_systemd=True, rid="r2").endswith("hello you rid=r2")
    finally:
        request_id.reset(token)
    assert "rid=" not in line(under_systemd=True)


def test_line_cannot_steer_the_terminal_that_shows_it() -> None:
    """A text of a client's or a tool's may hold escape sequences; journald and `less -R` pass them on."""
    assert line("\x1b]0;title\x07%s\x9b31m", under_systemd=True) == "<6>edged.x: \\x1b]0;title\\x07you\\x9b31m"


def test_name_of_a_line_comes_first() -> None:
    """Whatever else it carries; texts may change, names do not."""
    assert line(under_systemd=True, agent="house", event="request_ended").endswith(
        "hello you event=request_ended agent=house"
    )


def test_traceback_under_systemd_has_the_priority_on_every_line() -> None:
    """Or journald would file the rest of it as information."""
    try:
        raise ValueError("no")
    except ValueError:
        record = logging.makeLogRecord({"name": "e", "msg": "m", "levelno": logging.ERROR, "exc_info": sys.exc_info()})
    lines = Formatter(under_systemd=True).format(record).splitlines()
    assert len(lines) > 3
    assert all(text.startswith("<3>") for text in lines)
    assert lines[-1] == "<3>ValueError: no"


def test_set_up_writes_to_stderr_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing goes to stdout, which belongs to --json."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    quiet = logging.getLogger("asyncio").level
    root.handlers = []  # set_up closes what it replaces; these are wanted back
    try:
        log.set_up(under_systemd=False)
        logging.getLogger("edged.t").info("shown")
        logging.getLogger("edged.t").debug("hidden")
        logging.getLogger("asyncio").info("hidden")
    finally:
        root.handlers = before
        root.setLevel(level)
        logging.getLogger("asyncio").setLevel(quiet)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("edged.t: shown\n")

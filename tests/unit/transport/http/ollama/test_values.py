"""Single values of requests to Ollama's API."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edged.errors import BadRequest
from edged.transport.http.ollama import values


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("house", "house"),
        ("house:latest", "house"),
        (" House:LATEST ", "House"),
        ("house:7b", "house:7b"),
        ("latest", "latest"),
        (":latest", ""),
        ("a:latest:latest", "a:latest"),
    ],
)
def test_one_tag_means_nothing(given: str, name: str) -> None:
    """Others stay, and so are unknown."""
    assert values.bare_name(given) == name


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        ("", None),
        (0, 0.0),
        (30, 30.0),
        (0.5, 0.5),
        (-1, math.inf),
        ("0", 0.0),
        ("0s", 0.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("250ms", 0.25),
        ("-1m", math.inf),
        ("-1", None),
        ("300", None),
        ("5 m", None),
        ("m", None),
        ("5mm", None),
        (True, None),
        ([5], None),
    ],
)
def test_times_are_seconds_or_durations_of_go(given: Any, seconds: float | None) -> None:
    """A text without a unit is a mistake there, too."""
    if seconds is None and given not in (None, ""):
        with pytest.raises(BadRequest, match="keep_alive"):
            values.keep_alive({"keep_alive": given})
    else:
        assert values.keep_alive({"keep_alive": given}) == (None if seconds is None else pytest.approx(seconds))


def test_options_are_read_or_refused_by_name() -> None:
    """Each has a type; limits below one are none; what is unknown is named as it may stand in a header."""
    read = values.options(
        {"options": {"num_predict": -2, "seed": -7, "top_p": 1, "stop": ["", "a"], "x y": 1, "numa": None}}
    )
    assert (read.max_tokens, read.seed, read.top_p, read.stop, read.ignored) == (
        None,
        None,
        1.0,
        ("a",),
        ("options.x_y",),
    )
    assert values.options({"options": {"num_predict": 7.0, "seed": 3}}).max_tokens == 7
    assert values.options({"options": {"num_predict": 10**9}}).max_tokens == 2**20
    wrong: list[Any] = [{"temperature": 9}, {"top_p": -0.1}, {"seed": 2**40}, {"top_k": "5"}, {"stop": [1]}, []]
    for options in wrong:
        with pytest.raises(BadRequest, match="option"):
            values.options({"options": options})

"""What a server's complaints mean."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edged.upstreams import failures
from edged.upstreams.failures import MAX_SAID, Complaint, retry_after_s
from edged.upstreams.link import Sign

WALL = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


def meaning(status: int | None, code: str = "", pause_s: float | None = None) -> tuple[Sign, float | None]:
    """(sign, pause); the sign is good where only this request is refused."""
    got = Complaint(status, "words", code, pause_s).meaning()
    return got.sign, got.pause_s


@pytest.mark.parametrize(
    ("status", "sign"),
    [
        (400, Sign.GOOD), (413, Sign.GOOD), (415, Sign.GOOD), (422, Sign.GOOD), (451, Sign.GOOD),
        (401, Sign.REFUSED), (402, Sign.REFUSED), (403, Sign.REFUSED), (404, Sign.REFUSED), (405, Sign.REFUSED),
        (407, Sign.REFUSED), (410, Sign.REFUSED),
        (408, Sign.WEAK), (409, Sign.WEAK), (425, Sign.WEAK),
        (429, Sign.BUSY),
        (500, Sign.WEAK), (501, Sign.WEAK), (502, Sign.WEAK), (503, Sign.WEAK), (504, Sign.WEAK), (511, Sign.WEAK),
        (529, Sign.WEAK), (None, Sign.WEAK),
    ],
)  # fmt: skip
def test_complaint_means_by_its_status(status: int | None, sign: Sign) -> None:
    """The request, the key or model, chance, a pause: each status is one of them."""
    assert meaning(status) == (sign, None)


@pytest.mark.parametrize(
    ("status", "code", "pause_s", "means"),
    [
        (429, "", 7.0, (Sign.BUSY, 7.0)),
        (503, "", 7.0, (Sign.BUSY, 7.0)),
        (529, "", 7.0, (Sign.BUSY, 7.0)),
        (500, "", 7.0, (Sign.WEAK, None)),
        (400, "model_not_found", None, (Sign.REFUSED, None)),
        (None, "invalid_request_error", None, (Sign.GOOD, None)),
        (None, "server_error", None, (Sign.WEAK, None)),
    ],
)
def test_complaint_means_by_what_comes_with_it(
    status: int | None, code: str, pause_s: float | None, means: tuple[Sign, float | None]
) -> None:
    """Retry-After counts where the server is only busy; codes count where the status says too little."""
    assert meaning(status, code, pause_s) == means


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "too  many\nwords"}}, "HTTP 400: too many words"),
        ({"error": "plain"}, "HTTP 400: plain"),
        ({"error": "\x1b[2J\x00away\u202e"}, "HTTP 400: [2J away"),
        ({"message": "flat"}, "HTTP 400: flat"),
        ({"detail": [{"loc": ["body"]}]}, 'HTTP 400: [{"loc":["body"]}]'),
        ({"error": {}}, "HTTP 400"),
        ("text", "HTTP 400: text"),
        (b"", "HTTP 400"),
        (b"<html>secret-1</html>", "HTTP 400: an HTML page"),
        (b"\xff", "HTTP 400"),
        (b"[" * 100_000, "HTTP 400"),
        ({"error": {"message": "Incorrect key: secret-1."}}, "HTTP 400: Incorrect key: [key]."),
        ({"error": {"message": "x" * (MAX_SAID - 4) + "secret-1"}}, "HTTP 400: " + "x" * (MAX_SAID - 4) + "[key..."),
    ],
)  # fmt: skip
def test_complaint_quotes_the_server_without_the_key_and_not_at_length(body: Any, words: str) -> None:
    """Whatever the body is; a key is taken out before the text is cut, which could leave half of it."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    got = failures.complaint(400, raw, secret="secret-1").meaning()
    assert got.reason == words


def test_complaint_without_a_status_tells_the_code_without_the_key_and_not_at_length() -> None:
    """Also where the code is no code."""
    got = failures.of_object({"message": "no", "code": "secret-1" + "c" * 99}, status=None, secret="secret-1").meaning()
    assert str(got) == "an error ([key]" + "c" * 35 + "): no"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ({"code": 502}, 502, ""),
        ({"code": "503", "type": "t"}, 503, "t"),
        ({"code": "model_not_found"}, None, "model_not_found"),
        ({"code": None, "type": "server_error"}, None, "server_error"),
        ({"code": 7}, None, "7"),
        ({"code": "²"}, None, "²"),
        ({"code": "9" * 5000}, None, "9" * 5000),
        ("words", None, ""),
    ],
)
def test_of_object_finds_a_status_where_there_is_one(error: Any, status: int | None, code: str) -> None:
    """Streams have only the object."""
    got = failures.of_object(error, status=None, secret=None)
    assert (got.status, got.code) == (status, code)


@pytest.mark.parametrize(
    ("value", "date", "seconds"),
    [
        (None, None, None),
        ("5", None, 5.0),
        (" 5 ", None, 5.0),
        ("0", None, 0.0),
        ("9" * 400, None, 999_999_999.0),
        ("-5", None, None),
        ("1.5", None, None),
        ("²", None, None),
        ("soon", None, None),
        ("Fri, 15 Jan 2027 08:00:30 GMT", None, 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", None, 0.0),
        ("Thu, 01 Jan 1970 01:00:30 GMT", "Thu, 01 Jan 1970 01:00:00 GMT", 30.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", "nonsense", 30.0),
        ("Fri, 99 Jan 2027 08:00:30 GMT", None, None),
    ],
)
def test_retry_after_reads_both_forms(value: str | None, date: str | None, seconds: float | None) -> None:
    """Seconds, or a date that counts from the server's own clock; what is neither asks for nothing."""
    assert retry_after_s(value, date, WALL) == seconds

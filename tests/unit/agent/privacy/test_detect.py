"""What is taken for a person's, in texts as people and machines write them, and what is not."""

from __future__ import annotations

import random
import string

import pytest

from edged.agent.privacy import detect
from edged.agent.privacy.detect import find, kind_of

EVERY = [
    # e-mail
    ("write to anna.schmidt+shop@mail.example.co.uk, please", "EMAIL", "anna.schmidt+shop@mail.example.co.uk"),
    ("mailto:o'neill@example.com.", "EMAIL", "o'neill@example.com"),
    ("<müller@gärtnerei.example>", "EMAIL", "müller@gärtnerei.example"),
    ("'x_1@a-b.example'", "EMAIL", "x_1@a-b.example"),
    ("a@b.xn--vermgensberatung-pwb", "EMAIL", "a@b.xn--vermgensberatung-pwb"),
    ("{'mail': 'a@example.com', 'n': 1}", "EMAIL", "a@example.com"),
    ("a@example.com-based", "EMAIL", "a@example.com"),
    # phone
    ("call +43 664 1234567 now", "PHONE", "+43 664 1234567"),
    ("+436641234567", "PHONE", "+436641234567"),
    ("+43 (0)664/123 45 67", "PHONE", "+43 (0)664/123 45 67"),
    ("(+49) 89 123456", "PHONE", "+49) 89 123456"),
    ("+1 (415) 555-2671", "PHONE", "+1 (415) 555-2671"),
    ("+1-415-555-2671x12", "PHONE", "+1-415-555-2671"),
    ("+44 20 7946 0958", "PHONE", "+44 20 7946 0958"),
    ("+33 1 23 45 67 89.", "PHONE", "+33 1 23 45 67 89"),
    ("+86 138 0013 8000", "PHONE", "+86 138 0013 8000"),
    ("+91-98765-43210", "PHONE", "+91-98765-43210"),
    ("+55 11 91234-5678", "PHONE", "+55 11 91234-5678"),
    ("0043 664 1234567", "PHONE", "0043 664 1234567"),
    ("004366412345678", "PHONE", "004366412345678"),
    ("(415) 555-2671", "PHONE", "(415) 555-2671"),
    ("415-555-2671", "PHONE", "415-555-2671"),
    ("1-800-555-0199", "PHONE", "1-800-555-0199"),
    ("415.555.2671", "PHONE", "415.555.2671"),
    ("0664 1234567", "PHONE", "0664 1234567"),
    ("0664/1234567", "PHONE", "0664/1234567"),
    ("(089) 1234567", "PHONE", "(089) 1234567"),
    ("020 7946 0958", "PHONE", "020 7946 0958"),
    ("01 23 45 67 89", "PHONE", "01 23 45 67 89"),
    ("01.23.45.67.89", "PHONE", "01.23.45.67.89"),
    ("07911123456", "PHONE", "07911123456"),
    ("phone 4155552671", "PHONE", "4155552671"),
    ("Tel.: 555 2671", "PHONE", "555 2671"),
    # cards: the networks' own test numbers
    ("4111 1111 1111 1111", "CARD", "4111 1111 1111 1111"),
    ("card 4242424242424242.", "CARD", "4242424242424242"),
    ("5555-5555-5555-4444", "CARD", "5555-5555-5555-4444"),
    ("2223003122003222", "CARD", "2223003122003222"),
    ("378282246310005", "CARD", "378282246310005"),
    ("30569309025904", "CARD", "30569309025904"),
    ("6011111111111117", "CARD", "6011111111111117"),
    ("3530111333300000", "CARD", "3530111333300000"),
    # accounts: examples of the registry
    ("DE89 3704 0044 0532 0130 00", "IBAN", "DE89 3704 0044 0532 0130 00"),
    ("to AT611904300234573201 today", "IBAN", "AT611904300234573201"),
    ("GB29NWBK60161331926819,", "IBAN", "GB29NWBK60161331926819"),
    ("fr1420041010050500013m02606", "IBAN", "fr1420041010050500013m02606"),
    ("NO93 8601 1117 947 BIC DNBANOKK", "IBAN", "NO93 8601 1117 947"),
    ("MT84MALT011000012345MTLCAST001S", "IBAN", "MT84MALT011000012345MTLCAST001S"),
    # devices
    ("at 192.168.1.10.", "IP", "192.168.1.10"),
    ("http://10.0.0.7:8080/x", "IP", "10.0.0.7"),
    ("from 2001:db8::8a2e:370:7334", "IP", "2001:db8::8a2e:370:7334"),
    ("fe80::1ff:fe23:4567:890a", "IP", "fe80::1ff:fe23:4567:890a"),
    ("b8:27:eb:12:34:56", "MAC", "b8:27:eb:12:34:56"),
    ("B8-27-EB-12-34-56", "MAC", "B8-27-EB-12-34-56"),
]
NOTHING = [
    "",
    "2024-01-05",
    "05.01.2024",
    "01/02/2024 10:15",
    "01-02-2024",
    "2024-01-05T10:15:00+02:00",
    "2024-01-05 10:15:00.123456",
    "10:15:00",
    "05-2024-000123",
    "1700000000",  # seconds since 1970
    "1700000000000",
    "1700000000000000000",
    "3.14159265358979",
    "+23.5 -12.25 +1013.25",
    "+48.208174, +16.373819",
    "48.208174 16.373819",
    "63 % at 21.5 degrees",
    "0.000123456789",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "+1 2 3 4 5 6 7 8 9",
    "v1.2.3.4",
    "firmware 10.2.0.1",
    "1.2.3",
    "256.1.1.1",
    "127.0.0.1",
    "0.0.0.0",
    "::1",
    "std::vector::iterator",
    "order 4111111111111112",  # no Luhn
    "order 1234567812345670",  # Luhn, and no network gives it out
    "41111111111111111111111",
    "0000123456",
    "0012345678",
    "550e8400-e29b-41d4-a716-446655440000",
    "sha256 9f86d081884c7d659a2feaa0c55ad015",
    "DE90370400440532013000",  # no mod 97
    "XX89370400440532013000",
    "icon@2x.png",
    "user@localhost",
    "@handle and #tag",
    "edged/n1/agents/house/request",
    "1,000,000.00",
    "12345678901",
    "sensor-0123",
    "9780306406157",
    "b8:27:eb:12:34",
]


@pytest.mark.parametrize(("text", "kind", "part"), EVERY, ids=[text for text, *_ in EVERY])
def test_find_what_is_one(text: str, kind: str, part: str) -> None:
    """With its borders: nothing of it is left, and little of what stands beside it taken."""
    assert [(one.kind, text[one.start : one.end]) for one in find(text)] == [(kind, part)]


@pytest.mark.parametrize("text", NOTHING)
def test_find_leaves_what_is_none(text: str) -> None:
    """Dates, times, readings, versions, ids."""
    assert find(text) == []


def test_find_several_in_order() -> None:
    """Each of its kind."""
    text = "Anna (a@example.com, +43 664 1234567) pays from AT61 1904 3002 3457 3201 or 4111-1111-1111-1111."
    assert [one.kind for one in find(text)] == ["EMAIL", "PHONE", "IBAN", "CARD"]


@pytest.mark.parametrize(
    "unit",
    [
        "1",
        "1 ",
        "a",
        "a.",
        "a@",
        "a@a.",
        "+1 ",
        "0",
        "01 ",
        "(0",
        "AT61 ",
        "A1",
        ":",
        "ab:",
        "1.",
        "4-",
        "'",
        "x" * 63 + ".",
    ],
)
def test_find_takes_time_in_proportion(unit: str) -> None:
    """A megabyte of what begins like one again and again ends: a pattern that tries all ways would not."""
    find(unit * (2**18 // len(unit)))


def test_find_never_overlaps_whatever_comes() -> None:
    """Parts are in order and inside the text."""
    chance = random.Random(7)
    alphabet = "0123456789" * 4 + " -./()+:@" * 3 + string.ascii_letters
    for _ in range(2000):
        text = "".join(chance.choices(alphabet, k=chance.randrange(60)))
        rest = 0
        for start, end, kind in find(text):
            assert rest <= start < end <= len(text)
            assert kind in detect.KINDS
            rest = end


def test_checksums_notice_a_wrong_digit() -> None:
    """Each digit by itself."""
    for digits, kind in (("4111111111111111", "CARD"), ("AT611904300234573201", "IBAN")):
        assert kind_of(digits) == kind
        for at in range(4, len(digits)):
            assert kind_of(f"{digits[:at]}{(int(digits[at]) + 1) % 10}{digits[at + 1 :]}") != kind

"""What in a text says who somebody is: e-mail addresses, phone, card and account numbers, addresses of devices. Pure.

A regular expression finds what may be one, a check decides: check digits, lengths (python-stdnum), dates that look like
a number. Every pattern takes time in proportion to the text: groups are bounded, and what separates them is no part of
them.
"""

from __future__ import annotations

import bisect
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

KINDS = ("EMAIL", "IBAN", "CARD", "MAC", "IP", "PHONE")  # also the order in which they take their part of a text

EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+'-]{1,64}@((?:[\w-]{1,63}\.){1,8}(?:xn--[a-z0-9-]{2,59}|[^\W\d_]{2,63}))")
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}", re.ASCII)
CARD = re.compile(r"(?<![\w.,+-])[2-6](?:[ -]?\d){12,18}(?![\d]|[.,-]\d)", re.ASCII)
MAC = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])", re.ASCII)
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
VERSION = re.compile(r"(?:\bv|\bversion|\brelease|\bfirmware)[ :=]{0,2}\Z", re.IGNORECASE)  # stands before four numbers

# A group of a phone number and what stands before it: "(0)", a space, a slash, ...
GROUP = r"(?: ?\(\d{1,5}\)[ -]?|[ ./-]| - )\d{1,14}"
PHONES = tuple(
    re.compile(pattern, re.ASCII)
    for pattern in (
        rf"(?<![\w+])\+\d{{1,15}}\)?(?:{GROUP}){{0,7}}(?!\d)",  # +43 664 1234567
        rf"(?<![\w.,:/+-])00[1-9]\d{{0,14}}(?:{GROUP}){{0,7}}(?!\d)",  # 0043 664 1234567
        rf"(?<![\w.,:/+-])(?:\(0\d{{1,5}}\) ?\d{{1,10}}|0[1-9]\d{{0,4}})(?:{GROUP}){{0,5}}(?!\w)",  # (089) 123456
        r"(?<![\w.,:/+-])0[1-9]\d{8,9}(?!\w|[.,:/-]\d)",  # 06641234567
        # (415) 555-2671
        r"(?<![\w.,:/+-])(?:1[-. ])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}(?!\w|[.,:/-]\d)",
    )
)
# A number after such a word is one, however it is written.
ANNOUNCED = re.compile(
    r"\b(?:tel|telefon|telephone|phone|mobile|cell|handy|mobil|fax|whatsapp)\b[.:]{0,2}(?: ?(?:no|nr|number)\b[.:]?)?"
    r"(?: is| ist)? {0,3}(\+?\d(?:[ /-]?\d){5,14})(?!\w|[.,]\d)",
    re.IGNORECASE | re.ASCII,
)
PHONE_DIGITS = (8, 15)  # with its country, or with the leading 0; 15 is the most of E.164
PLAIN_DIGITS = 10  # a run that begins with 00 and has fewer is a number filled up with zeros
CARD_BEGINS = re.compile(  # of the networks, with the lengths that they give out
    r"(?:4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12}|62\d{14,17}|(?:50|5[6-9]|6[37])\d{11,17})"
)


class Found(NamedTuple):
    """A part of a text, from start to before end."""

    start: int
    end: int
    kind: str


def find(text: str) -> list[Found]:
    """Everything in it, in order; no two overlap."""
    found: list[Found] = []
    if "@" not in text and sum(map(str.isdigit, text)) < 4 and text.count(":") < 3:
        return found  # nothing here is shorter
    for kind in KINDS:
        for start, end in FINDERS[kind](text):
            one = Found(start, end, kind)
            at = bisect.bisect(found, one)
            if (at == 0 or found[at - 1].end <= start) and (at == len(found) or end <= found[at].start):
                found.insert(at, one)
    return found


def kind_of(text: str) -> str | None:
    """The kind of a text that is one of them from its first character to its last."""
    whole = text.strip()
    return next((one.kind for one in find(whole) if one.start == 0 and one.end == len(whole)), None) if whole else None


def _emails(text: str) -> Iterator[tuple[int, int]]:
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        name = match[0].partition("@")[0].lstrip("'")
        if name and not re.match(r"\dx\.", match[1]):  # icon@2x.png
            yield match.start(1) - len(name) - 1, match.end()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    at = 0
    while match := IBAN.search(text, at):
        at = match.start() + 2  # what is none may hide one
        length = _iban_length(match[0][:2].upper())
        places = [place for place in range(match.start(), match.end()) if text[place] not in " -"]
        if length is None or len(places) < length:
            continue
        end = places[length - 1] + 1
        whole = "".join(text[place] for place in places[:length])
        if not text[end : end + 1].isalnum() and _is_iban(whole):
            yield match.start(), end
            at = end


@functools.cache
def _iban_length(country: str) -> int | None:
    """Letters and digits of an account number of a country; None: it has none."""
    from stdnum import numdb  # only now: half a MiB that most daemons never need

    parts = re.findall(r"(\d+)!", numdb.get("iban").info(country)[0][1].get("bban", ""))
    return 4 + sum(map(int, parts)) if parts else None  # the country and two check digits come before them


def _is_iban(text: str) -> bool:
    from stdnum import iban

    return iban.is_valid(text, check_country=False)  # a bank's own check digits are not everywhere what a country says


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if CARD_BEGINS.fullmatch(digits) and _has_check_digit(digits):
            yield match.span()


def _has_check_digit(digits: str) -> bool:
    from stdnum import luhn

    return luhn.is_valid(digits)


def _macs(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in MAC.finditer(text))


def _ips(text: str) -> Iterator[tuple[int, int]]:
    for match in IPV4.finditer(text):
        if not VERSION.search(text, max(0, match.start() - 12), match.start()) and _address(match[0]):
            yield match.span()
    for match in IPV6.finditer(text):
        if sum(map(bool, match[0].split(":"))) >= 3 and _address(match[0]):  # "::" and "1::2" are anything
            yield match.span()


def _address(text: str) -> bool:
    """Whether it is an address that tells one device from another."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern in PHONES:
        for match in pattern.finditer(text):
            if end := _phone_end(match[0]):
                yield match.start(), match.start() + end
    for match in ANNOUNCED.finditer(text):
        if not _dated(match[1]):
            yield match.span(1)


def _phone_end(text: str) -> int:
    """Where the number ends: groups after the fifteenth digit are something else. 0: it is none."""
    ends = [match.end() for match in re.finditer(r"\d+\)?", text)]
    fewest, most = PHONE_DIGITS
    for end in reversed(ends):
        part = text[:end]
        digits = re.sub(r"\D", "", part)
        if len(digits.removeprefix("00")) > most:
            continue
        groups = re.findall(r"\d+", part)
        sparse = sum(len(group) == 1 for group in groups) > 2  # readings: "+1 2 3 4 5 6 7 8"
        decimal = re.fullmatch(r"\+?\d+\.\d+", part)  # +48.208174
        country = digits if part.startswith("+") else digits.removeprefix("00")
        zero = part.startswith("+0")
        padded = len(groups) == 1 and part.startswith("00") and len(country) < PLAIN_DIGITS
        if len(country) < fewest or sparse or decimal or zero or padded or _dated(part):
            return 0
        return end
    return 0


def _dated(text: str) -> bool:
    """Whether it begins with a date, or with the month of one."""
    groups = re.findall(r"\d+", text)[:3]
    year = [bool(re.fullmatch(r"(?:19|20)\d\d", group)) for group in groups]
    short = [len(group) <= 2 for group in groups]
    if "+" in text or len(groups) < 2:
        return False
    return (year[0] and short[1]) or (short[0] and year[1]) or (len(groups) > 2 and short[0] and short[1] and year[2])


FINDERS: dict[str, Callable[[str], Iterator[tuple[int, int]]]] = {
    "EMAIL": _emails,
    "IBAN": _ibans,
    "CARD": _cards,
    "MAC": _macs,
    "IP": _ips,
    "PHONE": _phones,
}

"""Free text as somebody has written it. Pure.

A small model that copies a name from a request loses its accents, capitals or spaces. A value that stands in what was
said, but for these, takes the spelling that it has there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from edged.types import JSON

# With one of these a parameter has a form of its own, or values to choose from.
FORMED = ("enum", "const", "pattern", "format", "values_sql", "$ref", "anyOf", "oneOf", "allOf")
SENTENCE_ENDS = ".!?:;\n\u201c\u201e\u00ab\"'("  # a capital behind them is the sentence's, not the word's


def arguments(
    given: Mapping[str, JSON], parameters: Mapping[str, Mapping[str, JSON]], texts: Iterable[str]
) -> dict[str, JSON]:
    """A call's arguments, with free texts as they were written.

    Args:
        texts: what was said, what counts most first.
    """
    said = list(texts)
    return {
        name: as_written(value, said) if isinstance(value, str) and _is_free(parameters.get(name, {})) else value
        for name, value in given.items()
    }


def as_written(value: str, texts: Iterable[str]) -> str:
    """A value as the first text spells it that holds it; as it is where one holds just this, or none any."""
    said = list(texts)
    wanted = _folded(value)[0].strip()
    if not wanted or any(_stands(value, text) for text in said):
        return value
    for text in said:
        spelled = list(_spellings(wanted, text))
        if spelled and len({each for each, _ in spelled}) == 1:
            found, starts_sentence = spelled[0]
            only_capital = found[:1].casefold() == value[:1].casefold() and found[1:] == value[1:]
            return value if only_capital and starts_sentence else found
    return value


def _is_free(parameter: Mapping[str, JSON]) -> bool:
    return parameter.get("type", "string") == "string" and not any(word in parameter for word in FORMED)


def _stands(value: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _spellings(wanted: str, text: str) -> Iterator[tuple[str, bool]]:
    """(how a text spells it, whether a sentence begins there)."""
    folded, places = _folded(text)
    for match in re.finditer(rf"(?<!\w){re.escape(wanted)}(?!\w)", folded):
        start, end = places[match.start()], places[match.end() - 1] + 1
        while end < len(text) and unicodedata.combining(text[end]):
            end += 1
        before = text[:start].rstrip()
        yield " ".join(text[start:end].split()), not before or before[-1] in SENTENCE_ENDS


def _folded(text: str) -> tuple[str, list[int]]:
    """(a text without case and accents, each white space one blank; where each of its letters stands in the text)."""
    letters: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(text):
        plain = unicodedata.normalize("NFKD", letter.casefold())
        for each in " " if letter.isspace() else plain:
            if unicodedata.combining(each) or (each == " " and letters[-1:] == [" "]):
                continue
            letters.append(each)
            places.append(place)
    return "".join(letters), places

"""The language of what edged says itself."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from edged.agent import language
from edged.config import Agent


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("en", "How warm is the garage?"),
        ("de", "Wie warm ist die Garage?"),
        ("de", "Zeige mir alle Notizen"),
        ("es", "¿Cuánto mide la temperatura del garaje?"),
        ("fr", "Quelle est la température du garage ?"),
        ("it", "Qual è la temperatura del garage?"),
        ("pt", "Qual é a temperatura da garagem?"),
        ("nl", "Hoe warm is het in de garage?"),
        ("pl", "Jaka jest temperatura w garażu?"),
        (None, "garage?"),
        (None, "Hur varmt är det?"),  # a language without sentences
        (None, ""),
    ],
)
def test_detected(code: str | None, text: str) -> None:
    assert language.detected(text) == code


@pytest.mark.parametrize(
    ("configured", "asked", "texts", "code"),
    [
        ("fr", "de", ["How warm is it?"], "fr"),
        ("auto", "de-AT", ["How warm is it?"], "de"),
        ("auto", "sv", ["Wie warm ist es?"], "de"),  # none of ours: as if the request named none
        ("auto", None, ["garage?", "Du bist der Helfer im Haus."], "de"),
        ("auto", None, ["garage?", ""], "en"),
    ],
)
def test_chosen(configured: str, asked: str | None, texts: list[str], code: str) -> None:
    assert language.chosen(configured, asked, texts) == code


def test_every_language_that_may_be_configured_has_its_sentences() -> None:
    configurable = set(get_args(get_type_hints(Agent)["language"])) - {"auto"}
    assert configurable == set(language.NOTHING_FOUND) == set(language.SMALL_WORDS)


@pytest.mark.parametrize(
    "text",
    ["yes", "Yes, please!", "Ja, bitte.", "ok", "sí", "Sí, por favor", "oui", "D\u2019accord !", "sì, va bene", "sim",
     "ja graag", "tak, proszę"],
)  # fmt: skip
def test_plain_yes(text: str) -> None:
    """In any of the languages, with what people say beside it."""
    assert language.is_yes(text)


@pytest.mark.parametrize(
    "text",
    ["", "!", "no", "nein", "please", "yes, but close it", "ja, aber nur halb", "okay, what is that?", "do it not"],
)  # fmt: skip
def test_no_plain_yes(text: str) -> None:
    """Whatever else stands in it may change what is meant."""
    assert not language.is_yes(text)


def test_every_language_asks_and_says_yes() -> None:
    assert set(language.ASKED) == set(language.YES) == set(language.SMALL_WORDS)

"""Free text keeps the spelling that somebody gave it."""

from __future__ import annotations

from typing import Any

import pytest

from edged.agent.copied import arguments, as_written


@pytest.mark.parametrize(
    ("value", "text", "written"),
    [
        ("cafe mowe", "call the Café Möwe", "Café Möwe"),
        ("sea  gull", "bring Sea Gull home", "Sea Gull"),
        ("seagull", "bring Sea Gull home", "seagull"),  # other words
        ("tomatoes", "Tomatoes need water", "tomatoes"),  # a capital of the sentence's
        ("Jose", "José is here. jose, not Jose", "Jose"),  # it stands there
        ("ana", "Ana and ANA", "ana"),  # two spellings
        ("art", "start the pump", "art"),  # a part of a word
        ("", "anything", ""),
    ],
)
def test_value_is_spelled_as_it_was_said(value: str, text: str, written: str) -> None:
    assert as_written(value, [text]) == written


def test_only_free_texts_are_looked_at() -> None:
    parameters: dict[str, Any] = {
        "a": {"type": "string"},
        "b": {"enum": ["jose"]},
        "c": {"pattern": "j.*"},
        "d": {"type": "integer"},
    }
    given = {"a": "jose", "b": "jose", "c": "jose", "d": 3}
    assert arguments(given, parameters, ["for José"]) == {**given, "a": "José"}

"""Values become placeholders and come back, whole, in pieces, and as models deform them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edged.agent.privacy.vault import Restorer, Vault, in_json


def filled() -> Vault:
    """With [EMAIL_1], [PRIVATE_1] and [PRIVATE_2], which is a number."""
    vault = Vault()
    assert vault.mask("from a@example.com") == "from [EMAIL_1]"
    assert vault.hide('Anna "Ann" Berg') == "[PRIVATE_1]"
    assert vault.mask('{"name": "Anna \\"Ann\\" Berg"}') == '{"name": "[PRIVATE_2]"}'  # as JSON writes it
    assert vault.hide(4711) == "[PRIVATE_3]"
    return vault


def test_the_same_value_has_the_same_placeholder() -> None:
    """In texts, as a private value, and with its kind."""
    vault = Vault()
    assert vault.mask("a@example.com, b@example.com, a@example.com") == "[EMAIL_1], [EMAIL_2], [EMAIL_1]"
    assert vault.hide("b@example.com") == "[EMAIL_2]"
    assert vault.hide("secret") == "[PRIVATE_1]"
    assert vault.mask("the secret of secrets: secret.") == "the [PRIVATE_1] of secrets: [PRIVATE_1]."


def test_private_values_are_found_as_words_longest_first() -> None:
    """Not in other words, and not where they are too short to tell anything."""
    vault = Vault()
    for value in ("Anna", "Anna Berg", "+x y", 4711, 42, "no", True):
        vault.hide(value)
    assert vault.mask("Anna Berg, Anna, Annabell, +x y, 4711, 47110, 42, no, true") == (
        "[PRIVATE_2], [PRIVATE_1], Annabell, [PRIVATE_3], [PRIVATE_4], 47110, 42, no, true"
    )


def test_numbers_that_somebody_has_written_are_not_given_out() -> None:
    """However it was written."""
    vault = Vault()
    vault.avoid(["see [EMAIL_1] and email_3"])
    assert vault.mask("see [EMAIL_1]: a@example.com b@example.com") == "see [EMAIL_1]: [EMAIL_2] [EMAIL_4]"
    assert vault.restore("[EMAIL_1] [EMAIL_2] [EMAIL_3]") == "[EMAIL_1] a@example.com [EMAIL_3]"


@pytest.mark.parametrize(
    "told",
    [
        "[EMAIL_1]", "[email_1]", "[Email 1]", "[EMAIL-1]", "[EMAIL1]", "[ EMAIL_1 ]", "EMAIL_1", "email_1",
        "\\[EMAIL\\_1\\]", "[EMAIL_01]",
    ],
)  # fmt: skip
def test_restore_forgives_what_models_make_of_it(told: str) -> None:
    """Letters, blanks, backslashes, missing brackets."""
    assert filled().restore(f"To {told}, now.") == "To a@example.com, now."


@pytest.mark.parametrize(
    "told", ["[EMAIL_2]", "email 1", "EMAIL_12", "MYEMAIL_1", "EMAIL_1a", "[PHONE_1]", "[EMAIL_]", "private 1"]
)
def test_restore_leaves_what_was_not_given_out(told: str) -> None:
    """And phrases that are none."""
    assert filled().restore(told) == told


def test_restore_in_json_stays_json() -> None:
    """Quotes in a value are escaped; values of other types come back as themselves where that is asked."""
    vault = filled()
    text = '{"name": "[PRIVATE_1]", "pin": "[PRIVATE_3]", "both": "[PRIVATE_1]/[PRIVATE_3]"}'
    assert json.loads(vault.restore(text, in_json)) == {
        "name": 'Anna "Ann" Berg', "pin": "4711", "both": 'Anna "Ann" Berg/4711',
    }  # fmt: skip
    assert vault.restored(json.loads(text)) == {
        "name": 'Anna "Ann" Berg', "pin": 4711, "both": 'Anna "Ann" Berg/4711',
    }  # fmt: skip


def test_a_number_and_its_text_come_back_as_what_they_were() -> None:
    """A tool that takes a number gets one."""
    vault = Vault()
    names = [vault.hide(4711), vault.hide("4711"), vault.hide(True), vault.hide("true")]
    assert vault.restored(names) == [4711, "4711", True, "true"]


def test_nothing_is_looked_for_where_it_is_switched_off() -> None:
    """Only what was hidden is a placeholder."""
    vault = Vault(detects=False)
    vault.hide("secret")
    assert vault.mask("secret: a@example.com") == "[PRIVATE_1]: a@example.com"


TOLD = [
    "Write to [EMAIL_1] or [email 1], EMAIL_1. [EMAIL_2] [PRIVATE_3]",
    "xEMAIL_1 EMAIL_1 p phone e em ema [[EMAIL_1]] \\[EMAIL\\_1\\] \\ [ [E",
    "[EMAIL_1",
    "EMAIL_1",
    "ends with EMAIL_",
    "[1, 2, [PRIVATE_3], {[EMAIL_1]}]",
]


@pytest.mark.parametrize("text", TOLD)
def test_restorer_says_the_same_in_pieces(text: str) -> None:
    """Whatever the pieces are."""
    vault = filled()
    chance = random.Random(3)
    for size in (1, 2, 3, 5, None, None, None):
        said: list[str] = []
        restorer = Restorer(vault, said.append)
        rest = text
        while rest:
            count = size or chance.randrange(1, 9)
            restorer.piece(rest[:count])
            rest = rest[count:]
        restorer.end()
        assert "".join(said) == vault.restore(text)


def test_restorer_holds_back_no_more_than_it_has_to() -> None:
    """A text without placeholders comes as it comes."""
    said: list[str] = []
    restorer = Restorer(filled(), said.append)
    for piece in ("The tank", " is full [see", " 3", "]. [EM", "AIL", "_1", "]", "!"):
        restorer.piece(piece)
    assert said == ["The tank", " is full [see", " 3", "]. ", "a@example.com", "!"]


def test_masked_and_restored_is_what_it_was() -> None:
    """Any text, with what may be in one."""
    chance = random.Random(11)
    parts: list[Any] = [
        "a@example.com",
        "+43 664 1234567",
        "Anna Berg",
        "[EMAIL_1]",
        "4711",
        " ",
        ", ",
        "x",
        '"',
        "\\",
        "[",
        "]",
        "_1",
    ]
    for _ in range(500):
        text = " ".join(chance.choices(parts, k=chance.randrange(12)))
        vault = Vault()
        vault.avoid([text])
        vault.hide("Anna Berg")
        vault.hide(4711)
        masked = vault.mask(text)
        assert vault.restore(masked) == text
        assert "example.com" not in masked

"""Which of many names somebody means."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.tools.spoken import Names, distance

# A name with an accent in each of eight languages, and one beside it that is not meant.
ACCENTED = {
    "en": "Brontë",
    "de": "Möwengruß",
    "es": "Señora Peñíscola",
    "fr": "Étoile d'Hélène",
    "it": "Città di Forlì",
    "pt": "São João da Conceição",
    "nl": "Zeeën",
    "pl": "Żółw z Łodzi",
}
OTHERS = ["Albatros", "Kon-Tiki", "Vega 12"]
BOATS = Names(
    ["Möwe", "Seagull", "Sea Star II", "Sea Star III", "Albatros", "Christina", "Berth 4", "Berth 14", 7, 12.5]
)


@pytest.mark.parametrize("name", ACCENTED.values(), ids=ACCENTED)
def test_accents_case_and_spaces_are_no_difference(name: str) -> None:
    """However it is typed or decomposed."""
    names = Names([name, *OTHERS])
    bare = name.translate(str.maketrans("łŁß", "lLs"))
    plain = "".join(c for c in unicodedata.normalize("NFD", bare) if not unicodedata.combining(c))
    ways = [name.upper(), name.lower(), unicodedata.normalize("NFD", name), name.replace(" ", ""), f"  {name} "]
    assert [names.nearest(way) for way in ways] == [name] * len(ways)
    assert names.nearest(plain) == name


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("moewe", "Möwe"),  # as it is typed without the key
        ("die Möwen", "Möwe"),  # article, plural
        ("the boat Seagull", "Seagull"),  # the parameter's own name
        ("sea gull", "Seagull"),
        ("the seagul", "Seagull"),
        ("albatross", "Albatros"),
        ("Kristina", "Christina"),  # by its sound
        ("sea star two", "Sea Star II"),
        ("Sea Star 3", "Sea Star III"),
        ("berth four", "Berth 4"),
        ("4", "Berth 4"),  # a part that no other has
        ("7", 7),
        (7.0, 7),
        ("sieben", 7),
        ("12.5", 12.5),
        ("Sea Star", None),  # two have it
        ("Sea Star 4", None),  # numbers are never bent
        ("berth 5", None),
        ("-4", None),
        ("Titanic", None),
        ("the", None),
        ("", None),
        (True, None),
        (None, None),
    ],
)
def test_spoken_form_finds_the_name_that_is_meant_or_none(said: object, meant: object) -> None:
    found = BOATS.nearest(said, "boat")
    assert found == meant
    assert type(found) is type(meant)


def test_name_that_is_there_is_itself_whatever_is_near() -> None:
    near = Names(["Anna", "Hanna", "Ana", "anna"])
    assert [near.nearest(name) for name in near.values] == list(near.values)
    assert near.nearest("ANNA") is None  # two have these letters


def test_two_that_are_near_are_nobody() -> None:
    assert Names(["Seagull", "Seagulls", "Kon-Tiki"]).nearest("Segull") is None
    assert Names(["Seagull", "Kon-Tiki"]).nearest("Segull") == "Seagull"
    assert Names(["Lima"]).nearest("Lisa") is None  # half of another name


letters = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


@given(st.lists(letters | st.integers(-999, 999), min_size=1, max_size=8), st.data())
def test_every_row_is_found_by_itself_and_what_is_found_is_a_row(values: list[object], data: st.DataObject) -> None:
    names = Names(values)
    said = data.draw(st.sampled_from(names.values))
    assert names.nearest(said) == said
    found = names.nearest(data.draw(letters), "boat")
    assert found is None or found in names.values


@given(st.text("abcd", max_size=8), st.text("abcd", max_size=8))
def test_distance_is_symmetric_and_bounded(one: str, other: str) -> None:
    exact = distance(one, other, 16)
    assert exact == distance(other, one, 16)
    assert abs(len(one) - len(other)) <= exact <= max(len(one), len(other))
    assert (exact == 0) is (one == other)
    assert distance(one, other, 2) == min(exact, 3)


def test_those_that_a_request_speaks_of_come_first() -> None:
    many = Names([f"Vessel {n}" for n in range(3000)] + ["Étoile du Nord", "Albatros"])
    alike = [value for _, value in many.alike("please bring the etoile du nord to vessel 17", 5)]
    assert alike[0] in ("Étoile du Nord", "Vessel 17")
    assert {"Étoile du Nord", "Vessel 17"} <= set(alike)
    assert many.alike("how warm is it", 5) == []

"""The nearest spoken form: which of many names somebody means who spells it otherwise. Pure.

People, models and speech recognition write a name in other cases, without its accents, in one word or two, in the
plural, with an article, with a number as a word ("pump two", "Albatros 2" for "Albatros II"). A name counts as meant
only where no other comes near: what is taken for another name becomes a wrong act.

Stages, each looser than the one before; the first that finds a name decides, and where it finds two nobody is meant:

1. the very value; the same text in another case
2. the same letters and digits, accents, spaces and punctuation aside
3. the same without articles and without the parameter's own name ("the boat Seagull")
4. the same sound ("Kristina" for "Christina")
5. a part of its words that no other name has ("Seagull" for "Seagull of Dover"), or a few letters changed

Numbers are never bent: a name with other digits is another name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

from edged.types import JSON

TOKEN = re.compile(r"(?<!\w)-?\d+|\d+|[^\W\d_]+")
# Letters that Unicode does not take apart, and how languages without them are typed.
LETTERS = str.maketrans(
    {"ł": "l", "đ": "d", "ø": "o", "æ": "ae", "œ": "oe", "\u0131": "i", "þ": "th", "ð": "d", "\u2019": ""}
)
SPELLED_OUT = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "å": "aa", "ø": "oe"})  # as Germans and Danes type them
ARTICLE_WORDS = (
    "the a an der die das den dem des ein eine einen einem el la los las un una le les l une il lo i gli o os as um "
    "uma het de een al du del"
)
ARTICLES = frozenset(ARTICLE_WORDS.split())
# One to twelve in eight languages; "one" alone where it is no article, too.
NUMBER_WORDS = (
    "one eins jeden",
    "two zwei zwo dos deux due dois duas twee dwa dwie",
    "three drei tres trois tre três drie trzy",
    "four vier cuatro quatre quattro quatro cztery",
    "five fünf cinco cinq cinque vijf pięć",
    "six sechs seis sei zes sześć",
    "seven sieben siete sept sette sete zeven siedem",
    "eight acht ocho huit otto oito osiem",
    "nine neun nueve neuf nove negen dziewięć",
    "ten zehn diez dix dieci dez tien dziesięć",
    "eleven elf once onze undici jedenaście",
    "twelve zwölf doce douze dodici doze twaalf dwanaście",
)
ROMAN_NUMBERS = "i ii iii iv v vi vii viii ix x xi xii"
ROMAN = {name: str(value) for value, name in enumerate(ROMAN_NUMBERS.split(), start=1)}
# What sounds alike, in order; letters that are doubled are one.
SOUNDS = (("ph", "f"), ("th", "t"), ("ck", "k"), ("qu", "kw"), ("ch", "k"), ("c", "k"), ("q", "k"), ("x", "ks"))
MORE_SOUNDS = (("y", "i"), ("j", "i"), ("z", "s"), ("w", "v"))
SOUND_LETTERS = 4  # of a name that is known by its sound: "Ana" and "Anna" are, "Al" and "All" are not
# Letters that may be changed, by the length of the longer name. Two of four would turn "Lima" into "Lisa".
CHANGES = ((14, 3), (9, 2), (5, 1))
MARGIN = 2  # changes that the next name has to be further off
LONGEST = 200  # characters of what is compared
ALIKE = 0.6  # of a name's pairs of letters that a text holds where it may speak of it


def _stripped(text: str) -> str:
    taken_apart = unicodedata.normalize("NFKD", text.translate(LETTERS))
    return "".join(letter for letter in taken_apart if not unicodedata.combining(letter))


NUMBERS = {
    form: str(value)
    for value, spelled in enumerate(NUMBER_WORDS, start=1)
    for word in spelled.split()
    for form in (_stripped(word), _stripped(word.translate(SPELLED_OUT)))
}


def words(text: str, *, spelled_out: bool = False) -> tuple[str, ...]:
    """A text's words in their plainest form; numbers as digits.

    Args:
        spelled_out: ä is "ae", not "a".
    """
    plain = text[:LONGEST].casefold()
    if not plain.isascii():
        plain = unicodedata.normalize("NFC", plain)
        plain = _stripped(plain.translate(SPELLED_OUT) if spelled_out else plain)
    plain = plain.replace("'", "")
    found = TOKEN.findall(plain)
    return tuple(_number(word, place, len(found)) for place, word in enumerate(found))


def _number(word: str, place: int, count: int) -> str:
    if word.lstrip("-").isdigit():
        return word.lstrip("0") or "0"
    if place and word in ROMAN and (len(word) > 1 or place == count - 1):  # "I", "V" and "X" are numbers at the end
        return ROMAN[word]
    return NUMBERS.get(word, word)


@lru_cache(1024)  # the names of one list are made of few words
def sound(word: str) -> str:
    """How a plain word sounds, roughly."""
    for letters, heard in (*SOUNDS, *MORE_SOUNDS):
        word = word.replace(letters, heard)
    return re.sub(r"([^\W\d])\1+", r"\1", word)


class Names:
    """Values to choose from: texts and numbers, each once. The index is made when it is first needed; of 5,000 names
    that takes 0.2 s on a core of an EPYC.

    Attributes:
        values: all of them.
    """

    def __init__(self, values: Iterable[JSON]) -> None:
        self.values = tuple(dict.fromkeys(values))

    def prepare(self) -> None:
        """Make the part of the index that `alike` needs, in a thread that may take its time."""
        self._by_pair, self._pairs_of  # noqa: B018  # cached properties

    def row(self, said: JSON) -> JSON | None:
        """The value that is just this one; None: there is none. A number may be written as a text, and the other way
        round; it is given as the rows have it."""
        if isinstance(said, str) and said in self._exact:
            return said
        number = _as_number(said)
        return None if number is None else self._of_number.get(number)

    def nearest(self, said: JSON, called: str = "") -> JSON | None:
        """The value that is meant; None: none is there, or more than one.

        Args:
            called: the parameter's name, whose words may stand beside the value.
        """
        if (row := self.row(said)) is not None:
            return row
        text = said if isinstance(said, str) else str(said)
        if not text.strip() or len(text) > LONGEST or isinstance(said, bool):
            return None
        found = self._found(text, frozenset(words(called.replace("_", " "))))
        return self.values[found.pop()] if len(found) == 1 else None

    def alike(self, text: str, most: int) -> list[tuple[float, JSON]]:
        """(likeness, value) of those that a text may speak of, the likeliest first: the share of a name's pairs of
        letters that the text holds, from ALIKE to 1."""
        pairs = set(_pairs("".join(words_of_all(text))))
        held = Counter[int]()
        for pair in pairs:
            held.update(self._by_pair.get(pair, ()))
        scored = [(count / self._pairs_of[place], place) for place, count in held.items()]
        # of those that the text holds whole the longest: "Vessel 17" before "Vessel 1"
        best = sorted(((-score, -self._pairs_of[place], place) for score, place in scored if score >= ALIKE))
        return [(-score, self.values[place]) for score, _, place in best[:most]]

    def _found(self, text: str, called: frozenset[str]) -> set[int]:
        if (same := self._folded.get(text.strip().casefold())) is not None:
            return set(same)
        whole = {words(text), words(text, spelled_out=True)}
        for index, forms in (
            (self._by_letters, whole),
            (self._by_core, {_core(form, called) for form in whole}),
            (self._by_core, {_core(form) for form in whole}),
        ):
            if found := {place for form in forms for place in index.get("".join(form), ())}:
                return found
        core = _core(words(text), called)
        if found := self._sounding({_core(form, called) for form in whole}):
            return found
        return self._partly(core) | self._changed(core)

    def _sounding(self, forms: Collection[tuple[str, ...]]) -> set[int]:
        heard = {"".join(map(sound, form)) for form in forms if sum(map(len, form)) >= SOUND_LETTERS}
        return {place for each in heard for place in self._by_sound.get(each, ())}

    def _partly(self, core: tuple[str, ...]) -> set[int]:
        """Those that hold all these words, and more."""
        if not core or not any(word.isdigit() or len(word) > 1 for word in core):
            return set()
        every = [self._by_word.get(sound(word), frozenset[int]()) for word in core]
        return set(frozenset.intersection(*every))

    def _changed(self, core: tuple[str, ...]) -> set[int]:
        """Those that a few changed letters away, and all others nearly as far: it is for the caller to see that there
        is only one."""
        key, digits = "".join(core), _digits(core)
        pairs = set(_pairs(key))
        held = Counter[int]()
        for pair in pairs:
            held.update(self._by_pair.get(pair, ()))
        near: list[tuple[int, int]] = []
        for place, count in held.items():
            other = "".join(self._cores[place])
            allowed = _changes(max(len(key), len(other)))
            reach = allowed + MARGIN - 1
            # a changed letter touches two pairs of neighbours, two letters in the wrong order three
            too_few = count < len(pairs) - 3 * reach
            if not allowed or too_few or abs(len(key) - len(other)) > reach or _digits(self._cores[place]) != digits:
                continue
            if (changed := distance(key, other, reach)) <= reach:
                near.append((changed, place))
        near.sort()
        if not near or near[0][0] > _changes(max(len(key), len("".join(self._cores[near[0][1]])))):
            return set()
        return {place for changed, place in near if changed < near[0][0] + MARGIN}

    # -- the index -----------------------------------------------------------------------------------------------------

    @cached_property
    def _exact(self) -> frozenset[JSON]:
        return frozenset(value for value in self.values if isinstance(value, str))

    @cached_property
    def _of_number(self) -> dict[float, JSON]:
        return {float(value): value for value in reversed(self.values) if isinstance(value, int | float)}

    @cached_property
    def _texts(self) -> list[str]:
        return [value if isinstance(value, str) else str(value) for value in self.values]

    @cached_property
    def _words(self) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Of each value both plain forms."""
        plain = [words(text) for text in self._texts]
        return [
            (form, form if text.isascii() else words(text, spelled_out=True))
            for form, text in zip(plain, self._texts, strict=True)
        ]

    @cached_property
    def _cores(self) -> list[tuple[str, ...]]:
        return [_core(plain) for plain, _ in self._words]

    @cached_property
    def _folded(self) -> dict[str, list[int]]:
        return _index((text.strip().casefold(), place) for place, text in enumerate(self._texts))

    @cached_property
    def _by_letters(self) -> dict[str, list[int]]:
        return _index(("".join(form), place) for place, both in enumerate(self._words) for form in set(both))

    @cached_property
    def _by_core(self) -> dict[str, list[int]]:
        return _index(("".join(_core(form)), place) for place, both in enumerate(self._words) for form in set(both))

    @cached_property
    def _by_sound(self) -> dict[str, list[int]]:
        every = ((_core(form), place) for place, both in enumerate(self._words) for form in set(both))
        return _index(("".join(map(sound, core)), place) for core, place in every)

    @cached_property
    def _by_word(self) -> dict[str, frozenset[int]]:
        every = _index((sound(word), place) for place, core in enumerate(self._cores) for word in set(core))
        return {word: frozenset(places) for word, places in every.items()}

    @cached_property
    def _by_pair(self) -> dict[str, list[int]]:
        return _index((pair, place) for place, core in enumerate(self._cores) for pair in set(_pairs("".join(core))))

    @cached_property
    def _pairs_of(self) -> list[int]:
        return [len(set(_pairs("".join(core)))) for core in self._cores]


def distance(one: str, other: str, most: int) -> int:
    """How many letters are changed, added, left out or in the wrong order; more than `most` is most + 1."""
    before: Sequence[int] = ()
    row: Sequence[int] = range(len(other) + 1)
    for i, letter in enumerate(one, start=1):
        last, row = row, [i]
        for j, its in enumerate(other, start=1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                best = min(best, before[j - 2] + 1)
            row.append(best)
        if min(row) > most and min(last) > most:
            return most + 1
        before = last
    return min(row[-1], most + 1)


def words_of_all(text: str) -> tuple[str, ...]:
    """As `words`, of a text of any length."""
    return tuple(word for start in range(0, len(text), LONGEST) for word in words(text[start : start + LONGEST]))


def _core(form: tuple[str, ...], called: Collection[str] = ()) -> tuple[str, ...]:
    """Without articles and the parameter's name; all of it where nothing is left."""
    left = tuple(word for word in form if word not in ARTICLES and word not in called)
    return left or form


def _digits(form: Iterable[str]) -> list[str]:
    return [word for word in form if word.lstrip("-").isdigit()]


def _changes(length: int) -> int:
    return next((changes for least, changes in CHANGES if length >= least), 0)


def _pairs(key: str) -> Iterable[str]:
    """Of letters that stand beside each other; a name of one letter is a pair of its own."""
    return map("".join, pairwise(key)) if len(key) > 1 else (key,)


def _index(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    made: defaultdict[str, list[int]] = defaultdict(list)
    for key, place in pairs:
        made[key].append(place)
    return dict(made)


def _as_number(said: JSON) -> float | None:
    if isinstance(said, bool) or not isinstance(said, str | int | float):
        return None
    try:
        return float(said)
    except (ValueError, OverflowError):
        return None

"""Other requests that mean other calls, made of those in the sets: values that stand in the text are put in place of
others, in text and call alike. Deterministic by the random generator that is handed in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from num2words import num2words

from adapter.plants import Case, Plant

NUMBER = r"(?<![\w.,:-]){}(?![\w:]|[.,]\d)"
TIME = re.compile(r"\b([01]?\d|2[0-3])([:.h])([0-5]\d)(?!\d)(?:\s*(?:am|pm|a\.m\.|p\.m\.|Uhr|uhr))?")
DATED = re.compile(r"\d{4}-")
CLOCK = re.compile(r"\d\d:\d\d")
CODE = re.compile(r"(?P<letters>[A-Z]{1,3})[ -]?(?P<number>[1-9]\d?)")  # of a place or a device: "B12", "LF 10"
LEAST_IN_WORDS = 3
STEPS = (0.5, 1.0, 5.0, 10.0, 25.0, 100.0)  # what spoken numbers are multiples of
# Said after a value that was wrong, with the one that is right.
CORRECTIONS = {
    "en": (
        "{wrong}, no wait, {right}",
        "{wrong}... sorry, {right}",
        "{wrong}, I mean {right}",
        "not {wrong} but {right}",
    ),
    "de": ("{wrong}, nein, {right}", "{wrong}, ach was, {right}", "nicht {wrong}, sondern {right}"),
    "es": ("{wrong}, no, {right}", "{wrong}, perdón, {right}"),
    "fr": ("{wrong}, non, {right}", "{wrong}, pardon, {right}"),
    "it": ("{wrong}, no, {right}", "{wrong}, anzi {right}"),
    "pt": ("{wrong}, não, {right}", "{wrong}, aliás {right}"),
    "nl": ("{wrong}, nee, {right}", "{wrong}, ik bedoel {right}"),
    "pl": ("{wrong}, nie, {right}", "{wrong}, to znaczy {right}"),
}
OUTSIDE = 0.15  # of numbers: beyond the range, written down as asked: the range is checked after the call is read
CORRECTED = 0.12
SPOKEN = 0.4  # of numbers and times: in words
NOISE = 0.2  # of requests: as speech recognition writes them, without capitals and punctuation


def varied(case: Case, plant: Plant, rng: Random) -> Case:
    """The case with other values, or as it is where none of its values stands in its text."""
    calls = [{"name": call["name"], "arguments": dict(call["arguments"])} for call in case.get("calls", ())]
    text = case["text"]
    for call in calls:
        for name, value in call["arguments"].items():
            parameter = plant.tools[call["name"]].parameters[name]
            others = sum(value in each["arguments"].values() for each in calls)
            if others > 1:  # the same value twice: which of the two the text means is not to be told
                continue
            text, call["arguments"][name] = _other(text, value, parameter, plant.language, rng)
    if calls == list(case.get("calls", ())) or any(call in calls[:place] for place, call in enumerate(calls)):
        return case
    return {
        **{key: value for key, value in case.items() if key not in ("accept", "answer", "facts")},
        "text": text,
        "calls": calls,
    }


def noisy(text: str, rng: Random) -> str:
    """A request as speech recognition writes it, sometimes."""
    if rng.random() >= NOISE:
        return text
    plain = re.sub(r"[,;!?]|\.(?!\d)", "", text)
    return plain.lower() if rng.random() < 0.8 else plain


def _other(text: str, value: Any, parameter: Mapping[str, Any], language: str, rng: Random) -> tuple[str, Any]:
    if "enum" in parameter and isinstance(value, str):
        return _other_choice(text, value, list(parameter["enum"]), language, rng)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _other_number(text, value, parameter, language, rng)
    if isinstance(value, str) and re.fullmatch(r"\d\d:\d\d", value):
        return _other_time(text, value, language, rng)
    return text, value


def _other_choice(text: str, value: str, choices: list[str], language: str, rng: Random) -> tuple[str, str]:
    places = [place for form in _forms(value, language) for place in re.finditer(rf"(?i)\b{re.escape(form)}\b", text)]
    others = [choice for choice in choices if choice != value and not re.search(rf"(?i)\b{re.escape(choice)}\b", text)]
    if len({place.span() for place in places}) != 1 or not others:
        return text, value
    other = rng.choice(others)
    said = _choice(other, language, rng)
    wrong = [choice for choice in others if choice != other]
    if wrong and rng.random() < CORRECTED:
        ways = [way for way in CORRECTIONS[language] if way.startswith("{wrong}")]
        said = rng.choice(ways).format(wrong=_choice(rng.choice(wrong), language, rng), right=said)
    start, end = places[0].span()
    return text[:start] + said + text[end:], other


def _forms(value: str, language: str) -> set[str]:
    """How a choice stands in texts: as it is, and a code such as "B12" also by its parts."""
    forms = {value.replace("_", " ")}
    if code := CODE.fullmatch(value):
        letters, number = code["letters"], code["number"]
        forms |= {
            f"{letters} {number}",
            f"{letters}{number}",
            *(f"{letters} {word}" for word in _words(int(number), language)),
        }
    return forms


def _choice(value: str, language: str, rng: Random) -> str:
    """A choice as it is said; a code in some way."""
    if CODE.fullmatch(value) and rng.random() < SPOKEN:
        return rng.choice(sorted(_forms(value, language))).lower()
    return value.replace("_", " ")


def _words(value: float, language: str) -> set[str]:
    """A number in words, as people and speech recognition write it."""
    try:
        said = str(num2words(value, lang=language))
    except (NotImplementedError, OverflowError):
        return set()
    return {said, said.replace("-", " "), said.replace(" and ", " ")}


def _other_number(
    text: str, value: float, parameter: Mapping[str, Any], language: str, rng: Random
) -> tuple[str, float]:
    spelled = f"{value:g}"
    forms = {spelled, spelled.replace(".", ",")}
    found = [place for form in forms for place in re.finditer(NUMBER.format(re.escape(form)), text)]
    if not found and value >= LEAST_IN_WORDS:  # "one" is an article in most languages
        spoken = _words(value, language)
        found = [place for form in spoken for place in re.finditer(rf"(?i)\b{re.escape(form)}\b", text)]
    spans = {place.span() for place in found}
    other = _drawn(value, parameter, rng)
    if len(spans) != 1 or other == value:
        return text, value
    [(start, end)] = spans
    comma = "," in text[start:end] or (language != "en" and rng.random() < 0.5)
    said = _said(other, language, rng, comma=comma)
    if rng.random() < CORRECTED:
        said = rng.choice(CORRECTIONS[language]).format(
            wrong=_said(_drawn(value, parameter, rng), language, rng, comma=comma), right=said
        )
    return text[:start] + said + text[end:], other


def _drawn(value: float, parameter: Mapping[str, Any], rng: Random) -> float:
    """Another number of the same kind, mostly within the range."""
    low, high = parameter.get("minimum", 0), parameter.get("maximum", max(10.0, value * 3))
    if rng.random() < OUTSIDE and "maximum" in parameter:
        high = low + (high - low) * 2
    whole = parameter.get("type") == "integer"
    step = rng.choice([s for s in STEPS if s <= max(1.0, (high - low) / 4) and (not whole or s == int(s))] or [1.0])
    drawn = low + step * rng.randint(0, max(0, int((high - low) / step)))
    return int(drawn) if whole or drawn == int(drawn) else round(drawn, 2)


def _said(value: float, language: str, rng: Random, *, comma: bool) -> str:
    if rng.random() < SPOKEN and value < 1000 and (words := _words(value, language)):
        return rng.choice(sorted(words))
    spelled = f"{value:g}" if value < 1e6 else str(value)
    return spelled.replace(".", ",") if comma else spelled


def _other_time(text: str, value: str, language: str, rng: Random) -> tuple[str, str]:
    found = [place.span() for place in TIME.finditer(text)] or _spoken_times(text, language)
    if len(found) != 1:
        return text, value
    [(start, end)] = found
    hour, minute = rng.randint(0, 23), rng.choice((0, 0, 15, 30, 30, 45, rng.randint(0, 11) * 5))
    other = f"{hour:02d}:{minute:02d}"
    said = (
        SPOKEN_TIMES.get(language, _plain_time)(hour, minute, rng)
        if rng.random() < SPOKEN
        else _plain_time(hour, minute, rng)
    )
    return text[:start] + said + text[end:], other


def _spoken_times(text: str, language: str) -> list[tuple[int, int]]:
    """Where times of day stand in words, behind what stands before such."""
    if language not in TIMES_OF_DAY:
        return []
    time = TIMES_OF_DAY[language].format(hours=HOURS[language], digits=DIGITS)
    found = re.finditer(rf"(?i)\b(?:{BEFORE_TIMES[language]}) (?P<time>{time})(?![\w:])", text)
    return [place.span("time") for place in found]


# What stands before a time of day, and what is said instead of both.
BEFORE_TIMES = {"en": "at|for|by", "de": "um|für|auf", "es": "a las?|para las?", "fr": "à|pour|vers"}
HOURS = {
    "en": "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve",
    "de": "eins?|zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn|elf|zwölf",
    "es": "una|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|once|doce",
    "fr": "une|deux|trois|quatre|cinq|six|sept|huit|neuf|dix|onze|douze|treize|quatorze|quinze|seize|dix-sept|dix-huit",
}
DIGITS = r"\d{1,2}([:.h][0-5]\d)?"
TIMES_OF_DAY = {
    "en": (
        r"((half|quarter|twenty|ten|five|twenty[- ]five) (past|to) )?"
        r"({hours}|noon|midnight|{digits})( (fifteen|thirty|forty[- ]five))?"
        r"( o'clock)?( ?(am|pm)\b| in the (morning|afternoon|evening)| at night| tonight)?"
    ),
    "de": (
        r"((halb|dreiviertel|viertel (vor|nach)|(fünf|zehn|zwanzig) (vor|nach)( halb)?) )?"
        r"({hours}|{digits})( uhr( \d\d| dreißig| fünfzehn)?)?( (morgens|früh|abends|nachmittags|mittags))?"
    ),
    "es": (
        r"({hours}|{digits})( y (media|cuarto|diez|veinte)| menos (cuarto|diez|veinte|cinco))?"
        r"( de la (mañana|tarde|noche)| del mediodía)?"
    ),
    "fr": (
        r"({hours}|midi|minuit|{digits})"
        r"( ?(heures?|h)( (et (quart|demie)|moins (le quart|dix|vingt)|\d\d))?)?( du (matin|soir)| de l'après-midi)?"
    ),
}
SPANS = {  # minutes: how they are said after the word for "in"
    "en": ("in", {30: "half an hour", 60: "an hour", 90: "an hour and a half", 120: "two hours"}, "{} minutes"),
    "de": (
        "in",
        {30: "einer halben Stunde", 60: "einer Stunde", 90: "anderthalb Stunden", 120: "zwei Stunden"},
        "{} Minuten",
    ),
    "es": ("dentro de", {30: "media hora", 60: "una hora", 90: "una hora y media", 120: "dos horas"}, "{} minutos"),
    "fr": ("dans", {30: "une demi-heure", 60: "une heure", 90: "une heure et demie", 120: "deux heures"}, "{} minutes"),
}


def relative(case: Case, plant: Plant, rng: Random) -> Case:
    """The case with "in twenty minutes" in place of its only time of day, where it has one that can be put so."""
    if plant.language not in SPANS or len(case.get("calls", ())) != 1:
        return case
    [call] = case["calls"]
    times = [name for name, value in call["arguments"].items() if isinstance(value, str) and CLOCK.fullmatch(value)]
    time = TIMES_OF_DAY[plant.language].format(hours=HOURS[plant.language], digits=DIGITS)
    found = [*re.finditer(rf"(?i)\b({BEFORE_TIMES[plant.language]}) ({time})(?![\w:])", case["text"])]
    dated = any(isinstance(value, str) and DATED.match(value) for value in call["arguments"].values())
    if len(times) != 1 or len(found) != 1 or dated:
        return case
    word, named, counted = SPANS[plant.language]
    minutes = rng.choice((*named, *range(5, 60, 5)))
    number = str(minutes) if rng.random() < 0.5 else num2words(minutes, lang=plant.language)
    said = f"{word} {named.get(minutes) or counted.format(number)}"
    hours, rest = divmod(minutes, 60)
    amount = "".join(f"{count}{unit}" for count, unit in ((hours, "h"), (rest, "m")) if count)
    other = {"name": call["name"], "arguments": {**call["arguments"], times[0]: f"now+{amount}"}}
    text = case["text"][: found[0].start()] + said + case["text"][found[0].end() :]
    return {
        "kind": case["kind"],
        "text": text,
        "calls": [other],
        **({"before": case["before"]} if "before" in case else {}),
    }


def _plain_time(hour: int, minute: int, rng: Random) -> str:
    return f"{hour:02d}:{minute:02d}" if rng.random() < 0.5 else f"{hour}:{minute:02d}"


def _english_time(hour: int, minute: int, rng: Random) -> str:
    if (hour, minute) == (12, 0):
        return "noon"
    if (hour, minute) == (0, 0):
        return "midnight"
    half = "am" if hour < 12 else "pm"
    day = {"am": "in the morning", "pm": "in the afternoon" if hour < 18 else "in the evening"}[half]
    when = rng.choice((f" {half}", f" {day}"))
    this, following = num2words(hour % 12 or 12), num2words((hour + 1) % 12 or 12)
    if minute == 0:
        return rng.choice((f"{hour % 12 or 12}{half}", f"{this} o'clock {day}", f"{this}{when}"))
    if minute in (15, 30):
        return f"{'quarter' if minute == 15 else 'half'} past {this}{when}"
    if minute == 45:
        return f"quarter to {following}{_after_midday(hour + 1, rng)}"
    if minute < 30:
        return rng.choice((f"{num2words(minute)} past {this}{when}", f"{hour % 12 or 12}:{minute:02d}{when}"))
    return rng.choice(
        (
            f"{num2words(60 - minute)} to {following}{_after_midday(hour + 1, rng)}",
            f"{hour % 12 or 12}:{minute:02d}{when}",
        )
    )


def _after_midday(hour: int, rng: Random) -> str:
    """What tells the halves of the day apart, by the hour that is named."""
    hour %= 24
    return (
        rng.choice((" am", " in the morning"))
        if hour < 12
        else rng.choice((" pm", " in the evening" if hour >= 18 else " in the afternoon"))
    )


def _german_time(hour: int, minute: int, rng: Random) -> str:
    def name(h: int) -> str:
        return str(num2words(h % 24, lang="de"))

    if minute == 0:
        return f"{name(hour)} Uhr".replace("eins Uhr", "ein Uhr")
    day = "abends" if hour >= 18 else "nachmittags" if hour >= 13 else "mittags" if hour >= 11 else "morgens"
    small = name(hour % 12 or 12)
    following = name((hour + 1) % 12 or 12)
    ways = {15: f"Viertel nach {small} {day}", 30: f"halb {following} {day}", 45: f"Viertel vor {following} {day}"}
    return ways.get(minute) if minute in ways and rng.random() < 0.7 else f"{hour} Uhr {minute}"  # type: ignore[return-value]


def _spanish_time(hour: int, minute: int, rng: Random) -> str:
    day = "de la mañana" if hour < 12 else "de la tarde" if hour < 20 else "de la noche"
    small, following = (num2words(h % 12 or 12, lang="es") for h in (hour, hour + 1))
    ways = {
        0: f"{small} {day}",
        15: f"{small} y cuarto {day}",
        30: f"{small} y media {day}",
        45: f"{following} menos cuarto {day}",
    }
    return ways.get(minute, f"{small} y {num2words(minute, lang='es')} {day}")


def _french_time(hour: int, minute: int, rng: Random) -> str:
    name = "une" if hour == 1 else num2words(hour, lang="fr")
    following = num2words((hour + 1) % 24, lang="fr")
    ways = {
        0: f"{name} heures",
        15: f"{name} heures et quart",
        30: f"{name} heures et demie",
        45: f"{following} heures moins le quart",
    }
    return ways.get(minute, f"{hour} h {minute:02d}")


def _dutch_time(hour: int, minute: int, rng: Random) -> str:
    day = "'s avonds" if hour >= 18 else "'s middags" if hour >= 12 else "'s ochtends"
    small, following = (num2words(h % 12 or 12, lang="nl") for h in (hour, hour + 1))
    ways = {
        0: f"{small} uur {day}",
        15: f"kwart over {small} {day}",
        30: f"half {following} {day}",
        45: f"kwart voor {following} {day}",
    }
    return ways.get(minute, f"{hour} uur {minute}")


def _italian_time(hour: int, minute: int, rng: Random) -> str:
    name = num2words(hour, lang="it")
    ways = {0: name, 15: f"{name} e un quarto", 30: f"{name} e mezza", 45: f"{name} e tre quarti"}
    return ways.get(minute, f"{name} e {num2words(minute, lang='it')}")


def _portuguese_time(hour: int, minute: int, rng: Random) -> str:
    name = {1: "uma", 2: "duas", 21: "vinte e uma", 22: "vinte e duas"}.get(hour, num2words(hour, lang="pt"))
    ways = {0: f"{name} horas", 15: f"{name} e um quarto", 30: f"{name} e meia"}
    return ways.get(minute, f"{name} e {num2words(minute, lang='pt')}")


SPOKEN_TIMES: dict[str, Callable[[int, int, Random], str]] = {
    "en": _english_time,
    "de": _german_time,
    "es": _spanish_time,
    "fr": _french_time,
    "nl": _dutch_time,
    "it": _italian_time,
    "pt": _portuguese_time,
}

"""Which language somebody writes in, and the few sentences that edged says itself. Pure.

Detection counts small words: of what people ask a board, nearly every sentence has two or three. No model, no download.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WORD = re.compile(r"[^\W\d_]+")
APOSTROPHE = "\u2019"  # as phones write it
WITH_APOSTROPHES = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")

# "Nothing was found", where a tool that reads found nothing.
NOTHING_FOUND = {
    "en": "Nothing was found.",
    "de": "Es wurde nichts gefunden.",
    "es": "No se ha encontrado nada.",
    "fr": "Rien n'a été trouvé.",
    "it": "Non è stato trovato nulla.",
    "pt": "Nada foi encontrado.",
    "nl": "Er is niets gevonden.",
    "pl": "Nic nie znaleziono.",
}
# "This call failed": before whatever else is answered, so that nobody takes the act for done.
FAILED = {
    "en": "{call} failed: {error}.",
    "de": "{call} ist fehlgeschlagen: {error}.",
    "es": "{call} ha fallado: {error}.",
    "fr": "{call} a échoué : {error}.",
    "it": "{call} non è riuscito: {error}.",
    "pt": "{call} falhou: {error}.",
    "nl": "{call} is mislukt: {error}.",
    "pl": "{call}: nie udało się: {error}.",
}
WHY = re.compile(r" ?: \{error\}")  # of these
# No tool of the agent can tell or do what was asked.
UNABLE = {
    "en": "I can neither do that here nor find it out: “{asked}”",
    "de": "Das kann ich hier weder tun noch herausfinden: „{asked}“",
    "es": "Aquí no puedo hacerlo ni averiguarlo: «{asked}»",
    "fr": "Je ne peux ni le faire ni le savoir ici : « {asked} »",
    "it": "Qui non posso né farlo né saperlo: «{asked}»",
    "pt": "Aqui não posso fazer isso nem descobri-lo: «{asked}»",
    "nl": "Dat kan ik hier niet doen en niet te weten komen: “{asked}”",
    "pl": "Nie mogę tego tutaj zrobić ani sprawdzić: „{asked}”",
}
# A value that its parameter does not allow. What is allowed is not named: nobody asked for these numbers.
OUTSIDE = {
    "en": "That is not done: {value} is outside what is allowed for {name}.",
    "de": "Das wird nicht getan: {value} liegt außerhalb dessen, was für {name} erlaubt ist.",
    "es": "No se hace: {value} está fuera de lo permitido para {name}.",
    "fr": "Ce n'est pas fait : {value} est hors de ce qui est permis pour {name}.",
    "it": "Non viene fatto: {value} è fuori da ciò che è permesso per {name}.",
    "pt": "Não é feito: {value} está fora do permitido para {name}.",
    "nl": "Dat wordt niet gedaan: {value} valt buiten wat voor {name} mag.",
    "pl": "Tego nie wykonano: {value} wykracza poza to, co dozwolone dla {name}.",
}
# A time that is counted from now, on a board that does not know what time it is.
CLOCK_UNSET = {
    "en": "That is not done: this board's clock is not set, so nobody knows when that would be.",
    "de": "Das wird nicht getan: Die Uhr dieses Geräts ist nicht gestellt, also ist unbekannt, wann das wäre.",
    "es": "No se hace: el reloj de este equipo no está en hora, así que no se sabe cuándo sería.",
    "fr": "Ce n'est pas fait : l'horloge de cet appareil n'est pas à l'heure, on ne sait donc pas quand ce serait.",
    "it": "Non viene fatto: l'orologio di questo dispositivo non è impostato, quindi non si sa quando sarebbe.",
    "pt": "Não é feito: o relógio deste aparelho não está acertado, por isso não se sabe quando seria.",
    "nl": "Dat wordt niet gedaan: de klok van dit apparaat is niet gezet, dus is onbekend wanneer dat zou zijn.",
    "pl": "Tego nie wykonano: zegar tego urządzenia nie jest ustawiony, więc nie wiadomo, kiedy by to było.",
}
# Whether to make a call of which the model is not sure.
ASKED = {
    "en": "Do you want me to do this: {what}?",
    "de": "Soll ich das tun: {what}?",
    "es": "¿Quieres que haga esto: {what}?",
    "fr": "Voulez-vous que je fasse ceci : {what} ?",
    "it": "Vuoi che faccia questo: {what}?",
    "pt": "Quer que eu faça isto: {what}?",
    "nl": "Wilt u dat ik dit doe: {what}?",
    "pl": "Czy mam to zrobić: {what}?",
}
# A value that is none of those a database has for its parameter, or may be several of them.
NOT_THERE = {
    "en": "That is not done: no {name} {value} is there, or several could be meant.",
    "de": "Das wird nicht getan: {name} {value} gibt es nicht, oder es kann mehreres gemeint sein.",
    "es": "No se hace: no hay {name} {value}, o podrían ser varios.",
    "fr": "Ce n'est pas fait : il n'y a pas de {name} {value}, ou plusieurs sont possibles.",
    "it": "Non viene fatto: non c'è {name} {value}, o potrebbero essere più d'uno.",
    "pt": "Não é feito: não há {name} {value}, ou pode ser mais de um.",
    "nl": "Dat wordt niet gedaan: {name} {value} is er niet, of er kunnen er meer bedoeld zijn.",
    "pl": "Tego nie wykonano: nie ma {name} {value} albo może chodzić o kilka.",
}
# An answer that needs an upstream, while there is no link: for whoever does not wait for it.
WAITS = {
    "en": "That needs a connection, and there is none now. It will be done as soon as there is one.",
    "de": "Das braucht eine Verbindung, und im Moment gibt es keine. Es wird erledigt, sobald es eine gibt.",
    "es": "Eso necesita una conexión y ahora no hay ninguna. Se hará en cuanto la haya.",
    "fr": "Il faut pour cela une connexion, et il n'y en a pas maintenant. Ce sera fait dès qu'il y en aura une.",
    "it": "Per questo serve una connessione e ora non c'è. Sarà fatto appena ce ne sarà una.",
    "pt": "Isso precisa de uma ligação e agora não há nenhuma. Será feito assim que houver uma.",
    "nl": "Daarvoor is een verbinding nodig en die is er nu niet. Het wordt gedaan zodra die er is.",
    "pl": "Do tego potrzebne jest połączenie, a teraz go nie ma. Zostanie to zrobione, gdy tylko będzie.",
}
DEFAULT = "en"

# A plain yes begins with a word of the first row and holds nothing but words of both.
YES = {
    "en": ("yes yeah yep ok okay sure", "please do it that go ahead exactly right"),
    "de": ("ja jawohl genau richtig", "bitte mach das gern so"),
    "es": ("sí si claro vale", "por favor hazlo exacto"),
    "fr": ("oui d'accord ouais", "s'il vous te plaît fais le allez y vas"),
    "it": ("sì si certo", "per favore fallo va bene esatto"),
    "pt": ("sim claro", "por favor pode fazer isso exato"),
    "nl": ("ja graag", "alsjeblieft doe maar dat"),
    "pl": ("tak", "proszę zrób to dokładnie"),
}
_YES = frozenset(" ".join(first for first, _ in YES.values()).split())
_WITH_YES = _YES | frozenset(" ".join(second for _, second in YES.values()).split())

SMALL_WORDS = {
    "en": "the is are was how what which who when where why many much of and in on at to it you please there do "
    "does did i me my can could has have any from for with this that not show tell give turn open close "
    "warm cold",
    "de": "der die das den dem des ein eine einen einem ist sind war wie was welche welcher welches wer wann wo "
    "warum viel viele und im in auf zu es du sie bitte gibt ich mir mein kann hat haben von für mit nicht "
    "zeige zeig mach schalte",
    "es": "el la los las un una es está están era cómo qué cuál cuáles quién cuándo dónde cuánto cuánta cuántos "
    "cuántas de del y en al por favor hay yo me mi puede tiene con para no muestra dime enciende abre "
    "cierra",
    "fr": "le la les un une des est sont était comment quel quelle quels quelles qui quand où pourquoi combien "
    "de du et dans sur au aux il elle vous tu je me mon ma peut a avec pour ne pas montre dis ouvre ferme "
    "y",
    "it": "il lo la gli le un una è sono era come che quale quali chi quando dove perché quanto quanta quanti "
    "quante di del della nel nella e in al per favore ci mi mio può ha con non mostra dimmi apri chiudi",
    "pt": "o a os as um uma é está estão era como que qual quais quem quando onde porque quanto quanta quantos "
    "quantas de do da dos das e em no na ao por favor há eu me meu pode tem com para não mostra diga abre "
    "fecha",
    "nl": "de het een is zijn was hoe wat welke wie wanneer waar waarom veel van en in op te je jij u "
    "alsjeblieft er ik mij mijn kan heeft hebben met voor niet toon zet doe",
    "pl": "jest są był była było jak jaki jaka jakie co który która które kto kiedy gdzie dlaczego ile z i w na "
    "do to ty proszę czy ja mi mój może ma od dla nie się pokaż powiedz włącz wyłącz otwórz zamknij",
}
_SPOKEN: dict[str, frozenset[str]] = {code: frozenset(words.split()) for code, words in SMALL_WORDS.items()}
_WORTH = {  # a word that several languages have says less about each
    word: 1 / sum(word in words for words in _SPOKEN.values()) for spoken in _SPOKEN.values() for word in spoken
}


def failed(code: str, call: str, error: str) -> str:
    """That a call failed. error: why; empty: its tool did not say."""
    template = FAILED[code] if error else WHY.sub("", FAILED[code])
    return template.format(call=call, error=error)


def detected(text: str) -> str | None:
    """The language of a text, as its code; None where no language has more of its words than the others."""
    words = [word.lower() for word in WORD.findall(text[:2000])]  # a beginning tells as much as the whole
    scores = {code: sum(_WORTH[word] for word in words if word in spoken) for code, spoken in _SPOKEN.items()}
    best, second = sorted(scores.values(), reverse=True)[:2]
    return max(scores, key=scores.__getitem__) if best > second else None


def is_yes(text: str) -> bool:
    """Whether a text is a plain yes, in any of the languages."""
    words = WITH_APOSTROPHES.findall(text.casefold().replace(APOSTROPHE, "'"))
    return bool(words) and words[0] in _YES and _WITH_YES.issuperset(words)


def chosen(configured: str, asked: str | None, texts: Iterable[str]) -> str:
    """The language that edged itself answers in: the configured one; with "auto" the one that the request names
    ("de-AT" is "de"), else that of the first text that tells, else English."""
    if configured != "auto":
        return configured
    named = re.split("[-_]", (asked or "").lower())[0]
    if named in NOTHING_FOUND:
        return named
    return next((found for text in texts if (found := detected(text))), DEFAULT)

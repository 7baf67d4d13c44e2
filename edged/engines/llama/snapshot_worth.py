"""Does reading a stored state beat computing its tokens, on this board? Pure; learns from every read."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field, structs

# First guesses, in bytes per second, both from the upper end: a guess that is too high is put right by the first read,
# one that is too low would never be tried. Cards of a Pi 4 or 5 deliver 40 to 90 MB/s; what is in the page cache is
# copied and checked, and SHA-256 without the CPU's help is 200 MB/s at best on such a board.
MEDIUM_BYTES_PER_S = 80e6
CACHE_BYTES_PER_S = 200e6
WEIGHT = 0.5  # of the newest figure: reads are rare, and media differ by the hour (other programs, a worn card)
# Each time reading is turned down its estimate gets better by so much, so that one slow read (a busy card at boot) is
# forgotten after a few loads, while a card that is slow indeed is tried one load in ten or so.
FORGIVENESS = 1.1
# "Computing has become a lot slower" than when a state was given up: fewer threads, a hot board, another model file.
CHANGED = 2.0
MOST_BARRED = 64  # more than prefixes fit any bound one would set; the oldest is forgotten, and tried once more

Rate = Annotated[float, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


class Worth(Struct):
    """What reading costs here, and which states were not worth it. It is kept as JSON; a zero in a file would divide.

    medium, cache: bytes/s read and checked, from the medium and from the page cache.
    restore_s_per_byte: what comes after reading: the runtime takes the state in.
    barred: name of a state -> tokens/s that computing reached when reading it was slower.
    """

    medium: Rate = MEDIUM_BYTES_PER_S
    cache: Rate = CACHE_BYTES_PER_S
    restore_s_per_byte: Seconds = 0.0
    barred: dict[str, Rate] = field(default_factory=dict)

    def read_s(self, n_bytes: int, *, cached: bool) -> float:
        """Seconds that reading, checking and restoring are expected to take. cached: it is in the page cache."""
        return n_bytes / (self.cache if cached else self.medium) + n_bytes * self.restore_s_per_byte

    def learn_read(self, n_bytes: int, seconds: float, *, cached: bool) -> None:
        """A read, its checksum included, took so long."""
        measured = max(seconds, 1e-6) / max(n_bytes, 1)
        if cached:
            self.cache = 1 / _mean(measured, 1 / self.cache)
        else:
            self.medium = 1 / _mean(measured, 1 / self.medium)

    def learn_restore(self, n_bytes: int, seconds: float) -> None:
        """What followed a read took so long."""
        self.restore_s_per_byte = _mean(max(seconds, 0.0) / max(n_bytes, 1), self.restore_s_per_byte)

    def forgive(self, *, cached: bool) -> None:
        """Reading was turned down."""
        if cached:
            self.cache = max(self.cache, min(self.cache * FORGIVENESS, CACHE_BYTES_PER_S))
        else:
            self.medium = max(self.medium, min(self.medium * FORGIVENESS, MEDIUM_BYTES_PER_S))
        self.restore_s_per_byte /= FORGIVENESS

    def bar(self, name: str, tokens_per_s: float) -> None:
        """Reading this one was slower than computing it, which goes at `tokens_per_s`."""
        self.barred.pop(name, None)
        self.barred[name] = tokens_per_s
        while len(self.barred) > MOST_BARRED:
            del self.barred[next(iter(self.barred))]

    def is_barred(self, name: str, tokens_per_s: float) -> bool:
        """Whether it was given up, and computing has not become a lot slower since."""
        then = self.barred.get(name)
        return then is not None and tokens_per_s * CHANGED > then

    def copy(self) -> Worth:
        """What `differs` may be asked about later."""
        return structs.replace(self, barred=dict(self.barred))

    def differs(self, other: Worth) -> bool:
        """Whether writing this down anew is worth a block of flash."""
        if self.barred != other.barred:
            return True
        return any(not 0.5 < a / b < 2 for a, b in ((self.medium, other.medium), (self.cache, other.cache)))


def _mean(newest: float, before: float) -> float:
    return before + WEIGHT * (newest - before)

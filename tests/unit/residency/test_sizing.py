"""What models take: who is asked, what is kept, how far a measurement counts."""

from __future__ import annotations

import pytest

from edged.errors import ModelUnavailable
from edged.interfaces import Estimate
from edged.residency.sizing import Sizer, corrected
from edged.types import KnownSize, MemoryNeed, ModelSpec

SPEC = ModelSpec(name="m", path="/m", context=512)
ASKED = MemoryNeed(weights=700, kv=200, compute=50, output=50, prefixes=32)
CALCULATED = MemoryNeed(weights=900, kv=200, compute=50, output=50, prefixes=32)


class Board:
    """A runtime that says what a model takes, and a book in memory."""

    def __init__(self) -> None:
        self.asked = 0
        self.says: MemoryNeed | None = ASKED
        self.libraries = 0
        self.spare = 10_000
        self.identity = "m 512"
        self.gone = False
        self.book: dict[str, KnownSize] = {}
        self.sizer = Sizer(
            Estimate(
                identity=self._identity,
                least=lambda spec: 700,
                ask=self._ask,
                ask_bytes=lambda spec: 100,
                calculate=lambda spec: CALCULATED,
                libraries=lambda: self.libraries,
            ),
            self,
            most=5_000,
        )

    async def predicted(self) -> MemoryNeed:
        return await self.sizer.predict(SPEC, lambda: self.spare)

    def _identity(self, spec: ModelSpec) -> str:
        if self.gone:
            raise ModelUnavailable("it is gone")
        return self.identity

    def _ask(self, spec: ModelSpec) -> MemoryNeed | None:
        self.asked += 1
        return self.says

    async def known(self, model: str) -> KnownSize | None:
        return self.book.get(model)

    async def keep(self, model: str, size: KnownSize) -> None:
        self.book[model] = size


@pytest.fixture
def board() -> Board:
    return Board()


async def test_runtime_is_asked_once_for_each_model_as_it_is(board: Board) -> None:
    """Another file, context or runtime is asked about anew."""
    assert await board.predicted() == ASKED
    assert await board.predicted() == ASKED
    assert board.asked == 1
    board.identity = "m 1024"
    await board.predicted()
    assert board.asked == 2


async def test_calculation_counts_where_the_runtime_says_nothing(board: Board) -> None:
    """And is not kept: another time it may say something."""
    board.says = None
    assert await board.predicted() == CALCULATED
    board.says = ASKED
    assert await board.predicted() == ASKED


async def test_nobody_is_asked_where_that_takes_memory_that_is_not_there(board: Board) -> None:
    """Asking must not be what kills the board."""
    board.spare = 99
    assert await board.predicted() == CALCULATED
    assert board.asked == 0


async def test_nobody_is_asked_about_a_model_that_can_never_fit(board: Board) -> None:
    """It is refused at once."""
    board.sizer = Sizer(board.sizer._estimate, board, most=699)
    assert await board.predicted() == CALCULATED
    assert board.asked == 0


async def test_measurement_of_a_first_load_is_taken_without_the_libraries(board: Board) -> None:
    """They come with the first model and are there for the second."""
    board.libraries = 45
    assert (await board.predicted()).loaded == 1045
    await board.sizer.observe(SPEC, 1100 + 45)
    board.libraries = 0
    assert (await board.predicted()).loaded == 1100


async def test_observing_a_model_whose_file_went_is_nothing(board: Board) -> None:
    """It is loaded, and works."""
    await board.predicted()
    board.gone = True
    await board.sizer.observe(SPEC, 1100)
    board.gone = False
    assert (await board.predicted()).loaded == 1000


@pytest.mark.parametrize(
    ("measured", "loaded"),
    [(None, 1000), (1000, 1000), (1100, 1100), (980, 980), (400, 970), (9_000, 1250), (0, 970)],
    ids=["none", "as-said", "more", "a-little-less", "much-less", "absurd", "nothing"],
)
def test_correction_is_bounded(measured: int | None, loaded: int) -> None:
    """One odd measurement neither hides that a model does not fit, nor makes it unloadable."""
    need = corrected(KnownSize(ASKED, measured))
    assert need.loaded == loaded
    assert (need.kv, need.compute, need.output, need.prefixes) == (200, 50, 50, 32)

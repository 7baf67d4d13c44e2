"""Which surface a path belongs to."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from aiohttp import web

from edged.errors import EdgedError
from edged.transport.http.core.surface import Surfaces


class Plain:
    """A surface that has only its paths."""

    def __init__(self, *paths: str, open_paths: tuple[str, ...] = ()) -> None:
        self.paths, self.open_paths = paths, open_paths

    def routes(self) -> Iterable[web.RouteDef]:
        """See Surface."""
        return []

    def error(self, _: web.BaseRequest, error: EdgedError) -> web.Response:
        """See Surface."""
        raise error


ROOT, CHAT, MODELS = Plain("/", open_paths=("/livez",)), Plain("/v1/chat", "/v1/x"), Plain("/v1/chat/models")
MOUNTED = Surfaces([CHAT, ROOT, MODELS])


@pytest.mark.parametrize(
    ("path", "surface"),
    [
        ("/", ROOT),
        ("/v1", ROOT),
        ("/v1/chatter", ROOT),
        ("/v1/chat", CHAT),
        ("/v1/chat/", CHAT),
        ("/v1/chat/completions", CHAT),
        ("/v1/x/y", CHAT),
        ("/v1/chat/models", MODELS),
        ("/v1/chat/models/a", MODELS),
        ("", ROOT),
        ("*", ROOT),
    ],
)
def test_path_belongs_to_the_surface_with_the_longest_path_above_it(path: str, surface: Plain) -> None:
    """Whole segments count, and what is nobody else's belongs to the root's."""
    assert MOUNTED.of(path) is surface


def test_only_whole_paths_are_open() -> None:
    """What lies below an open path needs a key like all else."""
    assert [MOUNTED.is_open(path) for path in ("/livez", "/livez/", "/livez/x", "/v1/chat")] == [True, *[False] * 3]

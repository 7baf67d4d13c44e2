"""Fixtures of the tests of HTTP in front of a desk. A test file takes them by `pytest_plugins`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support.http_api import Desk, serving, unix_session


@pytest_asyncio.fixture
async def desk() -> Desk:
    """What stands behind the transport."""
    return Desk()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of the socket."""
    return tmp_path / "http.sock"


@pytest_asyncio.fixture
async def client(desk: Desk, path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """On the Unix socket."""
    async with serving(desk, path), unix_session(path) as session:
        yield session

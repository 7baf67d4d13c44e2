"""Whatever the tests of the configuration load, the schema judges as well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import schema


@pytest.fixture(scope="session", autouse=True)
def _compared_with_the_schema() -> Iterator[None]:
    with schema.compared():
        yield

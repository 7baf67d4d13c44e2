"""Values that parameters have from a database."""

from __future__ import annotations

import pytest

from edged.errors import ToolFailed
from edged.tools.sql import column


def test_value_that_is_too_long_is_not_told() -> None:
    """It may be private, and the error stands in logs and replies."""
    with pytest.raises(ToolFailed, match="a value has 300 characters; at most 200") as failed:
        column._checked("Müller" * 50)
    assert "Müller" not in failed.value.message

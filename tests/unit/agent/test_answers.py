"""What a model wrote that follows no grammar of ours."""

from __future__ import annotations

import pytest

from edged.agent import answers
from edged.tools.values import schema
from edged.types import RawCall, ToolCall, ToolSpec

WATER = ToolSpec("water", "Water a bed.", schema({"bed": {}, "minutes": {"type": "integer", "optional": True}}))


@pytest.mark.parametrize("written", ['{"bed":"north"}', '{"bed":"north","minutes":null}'])
async def test_null_of_what_may_be_left_out_is_left_out(written: str) -> None:
    """So models of upstreams write it."""
    calls = await answers.checked({"water": WATER}, (RawCall("water", written),), 5)
    assert calls == (ToolCall("water", {"bed": "north"}),)


@pytest.mark.parametrize("written", ['{"minutes":5}', '{"bed":null}', '{"bed":"north","minutes":"long"}'])
async def test_optional_parameter_changes_nothing_about_the_others(written: str) -> None:
    """What is wrong goes back to the model."""
    assert isinstance(await answers.checked({"water": WATER}, (RawCall("water", written),), 5), answers.Wrong)

"""What an owner's examples are compared with."""

from __future__ import annotations

from typing import Any, cast

from edged.api.calibrate import Calibrate
from edged.config.tools import SqlTool
from edged.types import Ask, Caller, ToolCall

CALLER = Caller("unix:1", "unix", frozenset({"house"}))
ALARM = SqlTool(
    description="Set the alarm.", database="d", sql="SELECT :at", effect="write",
    parameters={"at": {"type": "string", "format": "date-time"}},
)  # fmt: skip


class Pipeline:
    """Shows a call as it would be made."""

    async def explain(self, _: Ask, **__: object) -> dict[str, Any]:
        """See Pipeline."""
        call = {
            "name": "set_alarm",
            "arguments": {"at": "2030-03-30T12:20:00+01:00"},
            "said": {"at": "now+20m"},
            "score": 0.9,
        }
        return {"call": call, "calls": [call]}


async def test_example_with_a_relative_time_is_compared_with_what_the_model_said() -> None:
    """The time that it means is another one whenever somebody calibrates."""
    nobody = cast("Any", None)
    calibrate = Calibrate(nobody, {"set_alarm": ALARM}, cast("Any", Pipeline()), nobody, nobody)
    decided = await calibrate._decided(CALLER, "house", "wake me in twenty minutes")
    assert decided is not None
    for said, right in (("now+20m", True), ("now+30m", False)):
        known = calibrate._judged(*decided, ToolCall("set_alarm", {"at": said}))
        assert (known.right, known.wrong_write) == (right, not right)

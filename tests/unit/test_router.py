"""Where a request is answered, as a table."""

from __future__ import annotations

import pytest

from edged import router
from edged.errors import BadRequest
from edged.router import Reason
from edged.types import Preference

AUTO, LOCAL, CLOUD = Preference.AUTO, Preference.LOCAL, Preference.CLOUD


@pytest.mark.parametrize(
    ("asked", "configured", "reason"),
    [
        (None, AUTO, Reason.LOCAL_OK),
        (None, LOCAL, Reason.LOCAL_ASKED),
        (AUTO, AUTO, Reason.LOCAL_OK),
        (AUTO, LOCAL, Reason.LOCAL_OK),
        (LOCAL, AUTO, Reason.LOCAL_ASKED),
        (LOCAL, LOCAL, Reason.LOCAL_ASKED),
        (LOCAL, CLOUD, Reason.LOCAL_ASKED),
        (AUTO, CLOUD, Reason.LOCAL_OK),
    ],
)
def test_decide_puts_what_is_asked_before_what_is_configured(
    asked: Preference | None, configured: Preference, reason: Reason
) -> None:
    """The reason says whether somebody wanted it so."""
    assert router.decide(asked, configured) is reason


@pytest.mark.parametrize(("asked", "configured"), [(CLOUD, AUTO), (CLOUD, LOCAL), (None, CLOUD)])
def test_decide_refuses_the_cloud_as_not_available_yet(asked: Preference | None, configured: Preference) -> None:
    """Insisting on the cloud is never quietly answered here."""
    with pytest.raises(BadRequest, match="not available yet"):
        router.decide(asked, configured)

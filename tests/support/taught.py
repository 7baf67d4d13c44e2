"""An adapter that belongs to a script's bytes, for a daemon with EDGED_TEST_MEMBERS: see `tests/support/faulty_daemon`.
EDGED_TEST_WEIGHTS is the sha256, EDGED_TEST_ADAPTER the adapter's file."""

import os
from pathlib import Path

from edged.models import adapters

adapters.shipped = lambda: {  # type: ignore[assignment]
    os.environ["EDGED_TEST_WEIGHTS"]: Path(os.environ["EDGED_TEST_ADAPTER"])
}

"""What a script with a client's own Python tells of what it tries. It needs nothing but that Python."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL = os.environ.get("EDGED_URL", "")  # of the daemon, without a path
KEY = os.environ.get("EDGED_KEY", "")


async def tried(what: str, use: Callable[[], Any]) -> None:
    """Try something: what it returns has to be true. Told in one line: "ok", or what went wrong."""
    try:
        made = use()
        made = await made if inspect.isawaitable(made) else made
        result = "ok" if made else f"gave {made!r}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"tried: {json.dumps([what, result])}\n")
    sys.stdout.flush()

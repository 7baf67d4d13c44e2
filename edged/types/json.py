"""JSON."""

from __future__ import annotations

from typing import Any

JSON = Any  # what json.loads may return; narrowed where it is used

"""For all tests."""

from __future__ import annotations

from edged.engine import cpus

cpus.before_loading()  # tests load llama.cpp themselves, and not only through the engine's thread

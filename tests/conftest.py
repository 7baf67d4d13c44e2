"""For all tests."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck, configuration

from edged.host import cpus

cpus.before_loading()  # tests load llama.cpp themselves, and not only through the engine's thread

# What hypothesis keeps (tables of Unicode, whatever it has found) has no place in a checkout.
configuration.set_hypothesis_home_dir(
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edged" / "hypothesis"
)
# An example takes milliseconds; what takes seconds, also on a busy machine, hangs.
HANGS = timedelta(seconds=5)
# Health checks ask for speed, which other processes may take; that a strategy filters too much they still say.
SLOW_IS_FINE = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
hypothesis.settings.register_profile(
    "suite", derandomize=True, database=None, max_examples=100, deadline=HANGS, suppress_health_check=SLOW_IS_FINE
)
hypothesis.settings.register_profile(
    "slow", database=None, max_examples=1000, deadline=HANGS, suppress_health_check=SLOW_IS_FINE, print_blob=True
)


def pytest_configure(config: pytest.Config) -> None:
    """The same examples every time; with the slow tests, many new ones."""
    wanted = str(config.option.markexpr)
    hypothesis.settings.load_profile("slow" if "slow" in wanted and wanted != "not slow" else "suite")

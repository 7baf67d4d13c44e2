"""A catalog with one more model, `tiny`, whose bytes are the file that EDGED_TEST_BYTES names. A daemon gets it by
EDGED_TEST_MEMBERS."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from edged.models import catalog
from edged.models.catalog import Entry, Source

SOURCE = Path(os.environ["EDGED_TEST_BYTES"])
TINY = Entry(
    name="tiny",
    description="Bytes.",
    engine="llama.cpp",
    family="none",
    parameters=1_500_000,
    quantization="Q4_0",
    context=512,
    licence="CC0-1.0",
    upstream="nowhere",
    sha256=hashlib.sha256(SOURCE.read_bytes()).hexdigest(),
    bytes=SOURCE.stat().st_size,
    sources=(Source(file=str(SOURCE)),),
)

catalog.catalog()[TINY.name] = TINY  # it is read once

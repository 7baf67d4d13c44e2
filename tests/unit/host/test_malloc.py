"""Pages that nobody needs go back to the kernel."""

from __future__ import annotations

import re
from pathlib import Path

from edged.host import malloc


def code_of(package: str) -> int:
    """Resident KiB of a package's code."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.findall(rf"r-xp .*/{package}/.*\n(?:[A-Z].*\n)*?Rss: +(\d+) kB", text)
    return sum(map(int, found))


def test_code_goes_and_comes_again() -> None:
    """Of the package that is named, and no other; what is run afterwards works."""
    import numpy as np
    import tokenizers

    splitter = tokenizers.pre_tokenizers.Whitespace()
    words = splitter.pre_tokenize_str("one two")
    product = np.ones((8, 8)) @ np.ones((8, 8))
    before, other = code_of("tokenizers"), code_of("_core")
    malloc.give_back_code(frozenset({"tokenizers"}))
    assert before > 0
    assert code_of("tokenizers") < before / 4
    assert code_of("_core") == other
    assert splitter.pre_tokenize_str("one two") == words
    assert (np.ones((8, 8)) @ np.ones((8, 8)) == product).all()
    assert code_of("tokenizers") > 0

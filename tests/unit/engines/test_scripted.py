"""Scripts of the scripted engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged.engines.scripted import _entry, read_script
from tests.support.daemon import entry, note


@pytest.mark.parametrize(
    ("match", "wanted"),
    [
        (r"write (\d+)", "7"),
        (r"write (?:\d+)( twice)?", ""),  # a group that found nothing
        (r"write \d+", r"\1"),  # no group: the text is as it is written
    ],
)
def test_groups_of_the_match_come_into_calls_and_text(match: str, wanted: str, tmp_path: Path) -> None:
    """So one entry serves many texts."""
    path = tmp_path / "script.toml"
    path.write_text(entry(match, note(r"n\1"), text=r"noted \1, \2"))
    found = _entry(read_script(path), "please write 7 now", "")
    assert found.calls == (note(f"n{wanted}"),)
    assert found.text == rf"noted {wanted}, \2"


def test_entry_may_want_to_see_something_before_the_text(tmp_path: Path) -> None:
    path = tmp_path / "script.toml"
    path.write_text(entry("open", note("seen"), sees="close") + entry("open", note("not seen")))
    script = read_script(path)
    assert _entry(script, "open it", "close it, open it").calls == (note("seen"),)
    assert _entry(script, "open it", "open it").calls == (note("not seen"),)

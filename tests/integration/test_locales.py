"""What bytes mean does not depend on the locale: configuration, questions, the user's database, tools and the command
line speak UTF-8 on a board that is set up for Latin-1, for POSIX, or for another encoding of Python's streams."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import edged
from tests.support.daemon import Daemon, Wired, entry, note

TEXT = "Grüße ✓ 20 °C"

TOOL = f'''
import subprocess, sys
from pathlib import Path


def write_down() -> dict:
    """Writes and reads, as people write it who have never heard of encodings."""
    print("{TEXT}")
    print("{TEXT}", file=sys.stderr)
    Path("über.txt").write_text("{TEXT}")
    child = subprocess.run([sys.executable, "-c", "print('{TEXT}')"], capture_output=True, text=True, check=True)
    size = len(Path("über.txt").read_bytes())
    return {{"read": open("über.txt").read(), "child": child.stdout.strip(), "bytes": size}}
'''


@pytest.fixture(scope="session")
def locales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of locales with Latin-1 in it: hardly a machine has that still."""
    folder = tmp_path_factory.mktemp("locales")
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/charmaps/ISO-8859-1.gz").exists():
        pytest.skip("no localedef, so there is no Latin-1 locale to try")
    made = [str(folder / "en_US.ISO-8859-1")]
    subprocess.run(["localedef", "-i", "en_US", "-f", "ISO-8859-1", "--no-archive", *made], check=True)
    return folder


ENVIRONMENTS = {
    "latin-1": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
    "posix": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "streams": {"PYTHONIOENCODING": "latin-1"},
    "latin-1-streams": {"LC_ALL": "en_US.ISO-8859-1", "PYTHONIOENCODING": "ascii:strict"},
}


@pytest.fixture(params=list(ENVIRONMENTS))
def environment(request: pytest.FixtureRequest, locales: Path) -> dict[str, str]:
    """Variables of a board."""
    return {"LOCPATH": str(locales), **ENVIRONMENTS[request.param]}


def test_environments_are_what_they_say(locales: Path) -> None:
    """Or the tests below would show nothing."""
    show = "import sys, locale; print(locale.getencoding(), sys.getfilesystemencoding())"
    for name, encoding in (("latin-1", "iso8859-1"), ("posix", "ascii")):
        variables = {"LOCPATH": str(locales), **ENVIRONMENTS[name]}
        shown = subprocess.run([sys.executable, "-c", show], env=variables, capture_output=True, check=True)
        assert shown.stdout.decode().split()[1] == encoding


async def test_daemon_and_command_line_speak_utf8_in_every_locale(tmp_path: Path, environment: dict[str, str]) -> None:
    """A question typed in a terminal, the prompt, a row of the user's database, a tool that prints, and the answer."""
    folder = tmp_path / "Gewächshaus"
    tools = folder / "tools"
    tools.mkdir(parents=True)
    (tools / "garden.py").write_text(TOOL, encoding="utf-8")
    more = '\n[tools.write_down]\npython = "garden:write_down"\n'
    script = entry(TEXT, note(TEXT), text=f"{TEXT} erledigt")
    async with Daemon(folder, config=more, script=script, environment=environment) as daemon:
        options = ("--socket", str(daemon.socket))
        asked = await edged("ask", TEXT, *options, config=daemon.config, variables=environment)
        assert (asked.code, asked.out) == (0, f"{TEXT} erledigt\n"), asked.err
        assert daemon.rows("diary") == [(TEXT,)]
        called = await edged("tools", "call", "write_down", "--json", *options, variables=environment)
        assert called.code == 0, called.out + daemon.text()
        assert called.json()["result"] == {"read": TEXT, "child": TEXT, "bytes": len(TEXT.encode())}
        assert daemon.text().count(f"write_down: {TEXT}") == 2
        checked = await edged("check", config=daemon.config, variables=environment)
        assert (checked.code, "Gewächshaus" in checked.out) == (0, True), checked.err
        refused = await edged("ask", "x", "--agent", TEXT, *options, variables=environment)
        assert (refused.code, TEXT in refused.err) == (65, True)
        assert await daemon.stop() == 0


async def test_byte_order_mark_is_skipped_wherever_an_editor_may_leave_one(tmp_path: Path) -> None:
    """The configuration, a drop-in, the script of a model, a Python module, and a question from a pipe."""
    mark = b"\xef\xbb\xbf"
    daemon = Daemon(tmp_path, script=entry("hello", note("noted"), text="Good day."))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "garden.py").write_text(
        'def four() -> int:\n    """Four."""\n    return 4\n', encoding="utf-8-sig"
    )
    daemon.drop_in('[tools.four]\npython = "garden:four"\n')
    for path in (daemon.config, tmp_path / "conf.d" / "50.toml", tmp_path / "script.toml"):
        path.write_bytes(mark + path.read_bytes())
    async with daemon:
        asked = await edged("ask", "-", "--socket", str(daemon.socket), stdin=mark + b"hello\n")
        assert (asked.code, asked.out) == (0, "Good day.\n"), asked.err
        async with Wired(daemon.socket) as client:
            _, found = await client.call(1, "tools.call", {"name": "four", "arguments": {}})
            assert found["result"] == 4
        assert await daemon.stop() == 0


async def test_check_names_columns_of_one_name_and_passes(tmp_path: Path) -> None:
    """Nothing is lost, and people name them better."""
    sql = "SELECT l.level, r.level FROM tank_levels l JOIN tank_levels r ON r.tank > l.tank"
    more = f'\n[tools.levels]\ndescription = "Levels."\ndatabase = "plant"\nsql = "{sql}"\n'
    daemon = Daemon(tmp_path, config=more)
    checked = await edged("check", config=daemon.config)
    assert (checked.code, "all right" in checked.out) == (0, True), checked.err
    assert "levels: several columns of its result are called 'level'" in checked.err
    document = (await edged("check", "--json", config=daemon.config)).json()
    assert (document["problems"], len(document["notes"])) == ([], 1)

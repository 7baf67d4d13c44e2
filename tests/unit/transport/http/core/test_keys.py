"""The file of API keys, and who a key says its bearer is."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from edged.errors import ConfigError
from edged.transport.http.core import keys

PANEL, PHONE = "0123456789abcdef", "fedcba9876543210-and-more"
FILE = f"# who may use the greenhouse\n\npanel:{PANEL}\n  phone : {PHONE} \n"


def basic(user: str, password: str) -> str:
    """As browsers and URLs with `user:password@` send it."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def load(folder: Path, text: str) -> keys.Keys:
    """The keys of a file with that text."""
    (folder / "keys").write_text(text)
    return keys.load(str(folder / "keys"))


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({"Authorization": f"Bearer {PANEL}"}, "panel"),
        ({"Authorization": f"bearer   {PHONE}"}, "phone"),
        ({"X-Api-Key": PHONE}, "phone"),
        ({"Authorization": "Basic dTpw", "X-Api-Key": PANEL}, "panel"),
        ({"Authorization": "Bearer unused-but-sent-by-an-sdk", "X-Api-Key": PANEL}, "panel"),
        ({"Authorization": f"Basic {basic('ollama', PANEL)}"}, "panel"),
        ({"Authorization": f"basic  {basic('', PHONE)}"}, "phone"),
        ({"Authorization": f"Basic {basic(PANEL, '')}"}, None),
        ({"Authorization": f"Basic {basic('a:b', PANEL)}"}, None),
        ({"Authorization": "Basic schl\udce4ssel"}, None),
        ({"Authorization": "Basic /w=="}, None),
        ({}, None),
        ({"Authorization": f"Bearer {PANEL[:-1]}"}, None),
        ({"Authorization": f"Bearer {PANEL}x"}, None),
        ({"Authorization": f"Basic {PANEL}"}, None),
        ({"Authorization": PANEL}, None),
        ({"Authorization": "Bearer"}, None),
        ({"Authorization": "Bearer # who may use the greenhouse"}, None),
        ({"X-Api-Key": ""}, None),
        ({"X-Api-Key": "panel"}, None),
        ({"X-Api-Key": "schl\udce4ssel und \ud800"}, None),
    ],
)
def test_key_names_its_client_and_nothing_else_does(tmp_path: Path, headers: dict[str, str], name: str | None) -> None:
    """In either header; comments, names, parts of keys and bytes that are no text are no keys."""
    assert load(tmp_path, FILE).name_of(headers) == name


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (f"panel:{PANEL}\npanel:{PHONE}\n", 2, "the name is that of line 1"),
        (f"panel:{PANEL}\n\nphone:{PANEL}\n", 3, "the key is that of line 1"),
        ("# keys\npanel:\n", 2, "0 characters"),
        ("panel:0123456789abcde\n", 1, "15 characters"),
        (f"{PANEL}\n", 1, "NAME:KEY"),
        (f":{PANEL}\n", 1, "NAME:KEY"),
        (f"{PANEL}:panel\n", 1, "5 characters"),
        (f"-panel:{PANEL}\n", 1, "no dash in front"),
        (f"my panel:{PANEL}\n", 1, "NAME:KEY"),
        ("panel:0123456789 abcdef\n", 1, "without spaces"),
        ("panel:0123456789äbcdef\n", 1, "ASCII"),
        ("panel:0123456789\x07bcdef\n", 1, "ASCII"),
        ("", None, "holds no key"),
        ("# nobody yet\n", None, "holds no key"),
    ],
)
def test_wrong_file_is_refused_by_its_line_and_without_its_keys(
    tmp_path: Path, text: str, line: int | None, said: str
) -> None:
    """The message goes into logs, where no key may be."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert refused.value.source == str(tmp_path / "keys")
    assert refused.value.line == line
    assert said in refused.value.problem
    for secret in (PANEL, PHONE, "0123456789"):
        assert secret not in str(refused.value)


def test_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    """Not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        keys.load(str(tmp_path / "nothing"))


def test_credential_is_read_from_where_the_service_manager_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`credential:NAME`, as in the configuration."""
    (tmp_path / "http-keys").write_text(FILE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert keys.load("credential:http-keys").name_of({"X-Api-Key": PANEL}) == "panel"


def test_keys_do_not_hold_their_text(tmp_path: Path) -> None:
    """A dump of the object, as in a traceback with locals, shows no key."""
    assert PANEL not in repr(vars(load(tmp_path, FILE)))

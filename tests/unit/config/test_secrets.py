"""Secrets are read in one place, and nothing shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edged import config
from edged.config import secrets
from edged.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def test_secret_is_read_from_a_file_without_its_newline(tmp_path: Path) -> None:
    """Spaces belong to it."""
    path = tmp_path / "s"
    path.write_text(" pass word \n")
    assert config.secret(str(path)) == " pass word "


def test_secret_is_read_from_systemds_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`credential:NAME` is a file of $CREDENTIALS_DIRECTORY."""
    (tmp_path / "mqtt").write_text("x\n")
    with pytest.raises(ConfigError, match="LoadCredential"):
        config.secret("credential:mqtt")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert config.secret("credential:mqtt") == "x"
    with pytest.raises(ConfigError, match="cannot be read"):
        config.secret("credential:other")


def test_secret_that_is_no_text_is_refused_without_showing_it(tmp_path: Path) -> None:
    """A key in a binary file is a mistake of the configuration, and its bytes stay out of the log."""
    path = tmp_path / "s"
    path.write_bytes(b"topsecret\xff")
    with pytest.raises(ConfigError, match="not UTF-8") as caught:
        config.secret(str(path))
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfkey\r\n", "key"),
        (b"one\r\ntwo\n\n", "one\r\ntwo"),
        ("\u00fcber \ufeff".encode(), "\u00fcber \ufeff"),
        (b"", ""),
    ],
    ids=["windows", "lines", "inner-mark", "empty"],
)
def test_what_editors_add_does_not_belong_to_a_secret(tmp_path: Path, content: bytes, text: str) -> None:
    """A byte order mark in front, and line ends at the end, of any system."""
    (tmp_path / "s").write_bytes(content)
    assert config.secret(str(tmp_path / "s")) == text


def test_secret_without_end_is_not_read_to_the_end() -> None:
    """A device in its place does not fill the memory."""
    with pytest.raises(ConfigError, match=f"more than {secrets.MAX_BYTES} bytes"):
        config.secret("/dev/zero")


@pytest.mark.parametrize("name", ["", "..", "../s", "a/b", "/etc/passwd"])
def test_credential_is_a_name_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """It never leaves the folder that systemd passed."""
    (tmp_path / "s").write_text("x")
    (tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    with pytest.raises(ConfigError, match="names no credential"):
        config.secret(f"credential:{name}")


@pytest.mark.parametrize("name", ["nothing", "", "nothing\0"], ids=["missing", "folder", "nul"])
def test_secret_that_cannot_be_read_names_its_file(tmp_path: Path, name: str) -> None:
    """And why."""
    with pytest.raises(ConfigError, match="cannot be read: ") as caught:
        config.secret(f"{tmp_path}/{name}")
    assert str(tmp_path) in str(caught.value)

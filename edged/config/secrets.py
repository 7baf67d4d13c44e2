"""Secrets: text that the configuration refers to and never holds. Everything that needs one reads it here."""

from __future__ import annotations

import os
from pathlib import Path

from edged.errors import ConfigError

CREDENTIAL = "credential:"
MAX_BYTES = 2**20  # what systemd passes as all credentials of a service together


def secret(reference: str) -> str:
    """The text of a secret: a file's, or for `credential:NAME` that of systemd's credential.

    Line ends at the end do not belong to it, nor does a byte order mark; spaces do.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8 text. The message never shows what is in it.
    """
    path = _path(reference)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), "", f"the secret cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL
        raise ConfigError(repr(str(path)), "", "the secret cannot be read: that is no path") from None
    if len(content) > MAX_BYTES:  # a device, or the wrong file
        raise ConfigError(str(path), "", f"the secret has more than {MAX_BYTES} bytes")
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "the secret is not UTF-8 text") from None


def _path(reference: str) -> Path:
    if not reference.startswith(CREDENTIAL):
        return Path(reference)
    name = reference.removeprefix(CREDENTIAL)
    if name in ("", ".", "..") or "/" in name:
        raise ConfigError(reference, "", 'names no credential; write "credential:NAME", as in LoadCredential=NAME:FILE')
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConfigError(reference, "", "systemd passed no credentials; use LoadCredential= or name a file")
    return Path(folder) / name

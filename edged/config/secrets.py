"""Secrets: text that the configuration refers to and never holds."""

from __future__ import annotations

import os
from pathlib import Path

from edged.errors import ConfigError


def secret(reference: str) -> str:
    """The text of a secret: a file's, or systemd's credential for `credential:NAME`, without the final newline.

    Raises:
        ConfigError: it cannot be read.
    """
    if reference.startswith("credential:"):
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(reference, "", "systemd passed no credentials; use LoadCredential= or name a file")
        path = Path(folder) / reference.removeprefix("credential:")
    else:
        path = Path(reference)
    try:
        return path.read_text().rstrip("\n")
    except OSError as error:
        raise ConfigError(str(path), "", f"the secret cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "the secret is not UTF-8 text") from None
    except ValueError:  # a NUL
        raise ConfigError(repr(str(path)), "", "the secret cannot be read: that is no path") from None

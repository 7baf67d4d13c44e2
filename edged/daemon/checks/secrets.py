"""Secrets: can each of them be read, and does it hold what it should."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from edged.config import CREDENTIAL, Config, api_key, secret
from edged.daemon.checks.finding import Finding, Inspection, Level, ok
from edged.errors import ConfigError
from edged.host.users import own_name
from edged.transport.http.core import keys

Read = Callable[[str], object]  # raises ConfigError


def look(inspected: Inspection) -> Iterator[Finding]:
    """Every secret that the configuration refers to; one line where all is well."""
    read = 0
    for key, reference, how in _references(inspected.settings):
        if reference.startswith(CREDENTIAL) and not inspected.in_service and "CREDENTIALS_DIRECTORY" not in os.environ:
            message = f"{reference} is given to the service only: whether it is right shows when it starts"
            yield inspected.at("secrets", key, message, "systemctl start edged; its log says more", Level.WARN)
            continue
        try:
            how(reference)
        except ConfigError as error:
            message, do = str(error), f"put it there, or correct {'.'.join(key)}"
            if not inspected.sees_all:
                yield inspected.at("secrets", key, f"seen by {own_name()}: {message}", "sudo edged doctor", Level.WARN)
            else:
                yield inspected.at("secrets", key, message, do)
        else:
            read += 1
    if read:
        yield ok("secrets", f"{read} can be read")


def _references(settings: Config) -> Iterator[tuple[tuple[str, ...], str, Read]]:
    """(key, reference, what reads it) of all."""
    if settings.mqtt and settings.mqtt.password_file:
        yield ("mqtt", "password_file"), settings.mqtt.password_file, secret
    if settings.http.api_keys_file:
        yield ("http", "api_keys_file"), settings.http.api_keys_file, keys.load
    for name, upstream in settings.upstreams.items():
        if upstream.api_key_file:
            yield ("upstreams", name, "api_key_file"), upstream.api_key_file, api_key
    for name, model in settings.served.items():
        if model.api_key_file:
            yield ("models", name, "api_key_file"), model.api_key_file, api_key

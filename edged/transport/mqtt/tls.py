"""Encryption and certificates of the link to the broker."""

from __future__ import annotations

import ssl
from typing import Any

from edged.transport.mqtt.settings import Settings

UNKNOWN_AUTHORITY = {18, 19, 20, 21}  # OpenSSL's codes for self-signed, unknown issuer and a broken chain


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when its handshake fails: paho leaves it open then, one file descriptor for each attempt."""

    def do_handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().do_handshake(*args, **kwargs)
        except BaseException:
            self.close()
            raise


def make_context(settings: Settings) -> ssl.SSLContext:
    """A context that checks the broker's certificate and host name. Reads files: not for the event loop.

    Raises:
        OSError: a file is missing or cannot be used; names the file.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise OSError(f"ca_file {settings.ca_file}: {error.strerror or error}") from error
    context.sslsocket_class = _ClosingSocket
    return context


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """Read our own certificate, if there is one. Done before each attempt: a renewed one is used without a restart.

    Raises:
        OSError: a file is missing or cannot be used; names the file.
    """
    if settings.cert_file is None:
        return
    try:
        context.load_cert_chain(settings.cert_file, settings.key_file, password=_no_passphrase)
    except OSError as error:
        files = " and ".join(filter(None, (settings.cert_file, settings.key_file)))
        raise OSError(f"cert_file {files}: {error.strerror or error}") from error


def _no_passphrase() -> str:
    """Without this OpenSSL would ask on a terminal the daemon does not have, and wait for ever."""
    return ""


def explain(error: Exception) -> str:
    """Why a connection broke or could not be made, for the log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; ca_file names the authorities to trust" if error.verify_code in UNKNOWN_AUTHORITY else ""
        return f"the broker's certificate is not accepted: {error.verify_message}{hint}"
    if isinstance(error, ssl.SSLError):
        return f"the TLS connection failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, OSError):
        return str(error.strerror or error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def hint_at_dial(error: Exception) -> str:
    """What is likely wrong when the peer goes away amid the handshake."""
    return "; is that its port for TLS?" if isinstance(error, ConnectionResetError | ssl.SSLEOFError) else ""


def hint_at_connect(settings: Settings) -> str:
    """What is likely wrong when the peer breaks TLS after the handshake: with TLS 1.3 that is when it has looked at our
    certificate, and its alert often does not get through."""
    if settings.cert_file is None:
        return "; it may want a client certificate (cert_file)"
    return "; it may not accept our certificate"

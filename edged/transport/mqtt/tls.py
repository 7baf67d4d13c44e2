"""Encryption and certificates of the link to the broker."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from edged.transport.mqtt.settings import Endpoint, Settings

# What a broker's other port needs, in words.
ENCRYPTED = "that port speaks TLS: write mqtts:// in mqtt.url, or name the port without TLS, which usually is 1883"
PLAIN = "mqtts:// needs the port with TLS, which usually is 8883; for the port without TLS write mqtt:// in mqtt.url"
HINT_AT_PLAIN = "; a port that speaks TLS does so too: then write mqtts:// in mqtt.url"
NO_TLS = {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}  # OpenSSL, of bytes that are no TLS
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
    """What is likely wrong when the peer goes away amid the handshake, or answers something else."""
    foreign = isinstance(error, ssl.SSLError) and error.reason in NO_TLS
    if not foreign and not isinstance(error, ConnectionResetError | ssl.SSLEOFError):
        return ""
    return f"; is that its port for TLS? {PLAIN}"


def speaks_tls(where: Endpoint, timeout_s: float) -> bool:
    """Whether a peer answers in TLS. Its certificate is not looked at, and nothing is sent but the greeting. Blocks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((where.host, where.port), timeout_s) as connection,
            context.wrap_socket(connection, server_hostname=where.host),
        ):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")  # it refuses us, in TLS
    except OSError:
        return False


def hint_at_connect(settings: Settings) -> str:
    """What is likely wrong when the peer breaks TLS after the handshake: with TLS 1.3 that is when it has looked at our
    certificate, and its alert often does not get through."""
    if settings.cert_file is None:
        return "; it may want a client certificate (cert_file)"
    return "; it may not accept our certificate"

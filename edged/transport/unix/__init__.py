"""The Unix socket: MessagePack-RPC."""

from edged.config import Config
from edged.transport.sockets import group_of
from edged.transport.unix.methods import Methods
from edged.transport.unix.server import UnixTransport

__all__ = ["UnixTransport", "make"]


def make(settings: Config) -> UnixTransport:
    """Of a configuration."""
    return UnixTransport(
        settings.socket_path,
        mode=int(settings.ipc.mode, 8),
        group=group_of(settings),
        methods=lambda api: Methods(api).table(),
    )

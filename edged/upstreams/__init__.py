"""Servers of the OpenAI API: the cloud's, that answer what the board cannot, and those on this board that run models of
its own."""

from edged.upstreams.cloud import Cloud
from edged.upstreams.local_servers import LocalServers

__all__ = ["Cloud", "LocalServers"]

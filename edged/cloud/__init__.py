"""The cloud: servers of the OpenAI API that answer what the board cannot."""

from edged.cloud.cloud import Cloud

__all__ = ["Cloud"]

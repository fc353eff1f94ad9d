"""Tasks that somebody owns, and waits that end."""

from holdfast.aio.tasks import Owner
from holdfast.aio.waits import settle, wait_event

__all__ = ["Owner", "settle", "wait_event"]

"""Tasks that somebody owns, waits that end, and descriptors that are nobody else's."""

from holdfast.aio.forks import closed_here, not_for_forks
from holdfast.aio.tasks import Owner
from holdfast.aio.waits import settle, wait_event

__all__ = ["Owner", "closed_here", "not_for_forks", "settle", "wait_event"]

"""The conversation as a full-screen page in a terminal. It knows the client library and the domain, nothing else."""

from __future__ import annotations

from holdfast.tui.app import ChatApp

__all__ = ["ChatApp"]

"""Holdfast runs AI agents so that no run ever hangs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.app.embedding import open

    __version__: str

__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:
    """Each is looked up when it is asked for: an isolated tool's process, which imports this, asks for neither."""
    if name == "__version__":
        from importlib.metadata import version

        return version("holdfast")
    if name == "open":
        from holdfast.app.embedding import open

        return open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

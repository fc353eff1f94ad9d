"""What every store raises when it cannot be opened."""

from __future__ import annotations


class StoreError(Exception):
    """The store cannot be used; the text names it, what is wrong and the remedy."""


class StoreTaken(StoreError):
    """Another server has the store to itself."""

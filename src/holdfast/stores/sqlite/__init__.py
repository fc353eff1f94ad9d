"""SQLite, the default store: one file, WAL, an fsync at every commit."""

from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore", "StoreError"]

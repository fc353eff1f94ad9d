"""What SQLite's errors mean here."""

from __future__ import annotations

import sqlite3
from typing import Final

_MALFORMED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Growing a file, or mapping a grown one: with a full disk or a quota SQLite says these where it does not say FULL.
_GROWING: Final = (sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_TRUNCATE)


def extended_code_of(error: BaseException) -> int:
    """SQLite's extended result code, 0 where the error is not SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code


def code_of(error: BaseException) -> int:
    """SQLite's primary result code, 0 where the error is not SQLite's."""
    return extended_code_of(error) & 0xFF


def says_full(error: BaseException) -> bool:
    """Whether SQLite itself names the full disk."""
    return code_of(error) == sqlite3.SQLITE_FULL


def may_be_full(error: BaseException) -> bool:
    """Whether a full disk can be behind it; the disk has to be asked."""
    return extended_code_of(error) in _GROWING or code_of(error) == sqlite3.SQLITE_CANTOPEN


def is_busy(error: BaseException) -> bool:
    """Whether another connection is writing."""
    return code_of(error) == sqlite3.SQLITE_BUSY


def breaks_connection(error: BaseException) -> bool:
    """Whether the connection is not to be trusted after it."""
    return code_of(error) in (*_MALFORMED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PROTOCOL)

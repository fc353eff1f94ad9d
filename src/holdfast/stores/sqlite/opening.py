"""A connection that writes, on a database with the present schema, or an error that says what to do."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from holdfast.ports.clock import Clock
from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.ballast import Ballast
from holdfast.stores.sqlite.connect import connect_to_write, explained, prepare
from holdfast.stores.sqlite.faults import says_full


def make_directory(path: str) -> None:
    """The directory of the database; StoreError where that cannot be."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the directory of {path}: {error}; check the path and its permissions") from error


def prepared(path: str, clock: Clock, ballast: Ballast | None) -> sqlite3.Connection:
    """The writing connection, on a database with the present schema."""
    try:
        return _try_prepared(path, clock)
    except sqlite3.Error as error:
        if ballast is None or not says_full(error):
            raise explained(path, error) from error
    ballast.free()
    try:
        return _try_prepared(path, clock)
    except sqlite3.Error as error:
        raise explained(path, error) from error


def _try_prepared(path: str, clock: Clock) -> sqlite3.Connection:
    conn = connect_to_write(path)
    try:
        prepare(conn, path, clock)
    except BaseException:
        conn.close()
        raise
    return conn

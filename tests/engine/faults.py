"""A store that fails on demand: before it acts, after it acted (the reply is lost), or by a fault of ours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from holdfast.domain.errors import StoreUnavailable
from holdfast.stores.sqlite import SqliteStore

WATCHED = frozenset({"claim", "renew", "append", "finish", "read", "history", "reap", "next_due_ms", "get", "release"})


class FaultyStore:
    """Passes every operation on; `decide(name, n)` says what goes wrong with the n-th call of that name."""

    def __init__(self, store: SqliteStore, decide: Callable[[str, int], str]) -> None:
        """decide answers "" (nothing), "before", "after" or "raise"."""
        self._store = store
        self._decide = decide
        self.counts: dict[str, int] = {}
        self.injected = 0

    def __getattr__(self, name: str) -> Any:
        """Wrap what is watched."""
        attribute = getattr(self._store, name)
        if name not in WATCHED:
            return attribute

        @functools.wraps(attribute)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.counts[name] = self.counts.get(name, 0) + 1
            fault = self._decide(name, self.counts[name])
            if fault:
                self.injected += 1
            if fault == "before":
                raise StoreUnavailable(f"{name}: injected before")
            if fault == "raise":
                raise RuntimeError(f"{name}: injected fault of ours")
            answer = await attribute(*args, **kwargs)
            if fault == "after":
                raise StoreUnavailable(f"{name}: injected after")
            return answer

        return wrapped

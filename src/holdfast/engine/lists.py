"""Following a tenant's list of runs: what is in it, and what changed since the last look.

Wakes say that something changed and not what, and may be lost. So each look compares how the runs stand now with how
they stood, by their marks, and only a run whose mark differs is read. A look that fails loses nothing: what it found
is handed out by the next one, and what it did not come to still differs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.ports.store import ROSTER_MADE, Glance, RunRecord, RunStore, Wake, list_topic

ENDED_MAX: Final = 100  # ended runs that are watched for being deleted, the newest
_NEVER: Final = 2**53
_LOOKS_MAX: Final = 50  # in a row, where more runs were made than one look tells of


class Change(msgspec.Struct, frozen=True):
    """A run that is new or different, or, without a record, one whose log was deleted."""

    run: str
    number: int  # in order of creation
    record: RunRecord | None


class _Seen:
    """A run as it was when we last read it."""

    __slots__ = ("ended", "mark", "number")

    def __init__(self, number: int, mark: str, *, ended: bool) -> None:
        self.number = number
        self.mark = mark
        self.ended = ended


class ListWatch:
    """One tenant's list, for one reader of it."""

    def __init__(self, store: RunStore, tenant: str) -> None:
        """Nothing was looked at yet."""
        self._store = store
        self._tenant = tenant
        self._since: int | None = None
        self._seen: dict[str, _Seen] = {}
        self._found: list[Change] = []

    def subscribe(self) -> AbstractContextManager[Wake]:
        """Wakes when there may be something to look at."""
        return self._store.subscribe(list_topic(self._tenant))

    async def look(self) -> list[Change]:
        """What changed; at the first look, the newest runs and those that have not ended.

        Raises:
            StoreUnavailable: Look again.
        """
        if self._since is None:
            self._since = await self._begin()
        for _ in range(_LOOKS_MAX):
            since = self._since
            roster = await self._store.roster(
                self._tenant, since, [run for run, seen in self._seen.items() if seen.ended]
            )
            glances = {glance.run: glance for glance in roster.glances}
            if left := [run for run in self._seen if run not in glances]:  # they have ended, or are gone
                again = await self._store.roster(self._tenant, roster.upto, left)
                glances |= {glance.run: glance for glance in again.glances}
            for glance in glances.values():
                seen = self._seen.get(glance.run)
                if seen is None or seen.mark != glance.mark:
                    await self._read(glance)
            for run in left:
                if run not in glances:
                    self._forget(run)
            self._since = roster.upto  # not before all of it was read
            if sum(glance.number > since for glance in roster.glances) < ROSTER_MADE:
                break
        if self._found:
            self._drop_old()
        found, self._found = self._found, []
        return found

    async def _begin(self) -> int:
        """Take the newest runs as they are; the number of the newest."""
        listed = [r.key.run for r in await self._store.list_runs(self._tenant, limit=ENDED_MAX)]
        if not listed:
            return 0
        roster = await self._store.roster(self._tenant, _NEVER, listed)
        # Read after the marks, so that no mark is newer than what was read under it.
        records = {r.key.run: r for r in await self._store.list_runs(self._tenant, limit=ENDED_MAX)}
        newest = 0
        for glance in roster.glances:
            if glance.run in listed:
                newest = max(newest, glance.number)
                if glance.run in records:  # else it is found as one that is not known yet, or is gone
                    self._take(glance, records[glance.run])
        return newest

    async def _read(self, glance: Glance) -> None:
        record = await self._store.get(RunKey(self._tenant, glance.run))
        if record is None:
            self._forget(glance.run)
        else:
            self._take(glance, record)

    def _take(self, glance: Glance, record: RunRecord) -> None:
        seen = self._seen.get(glance.run)
        if seen is None or not seen.ended:  # its end may have been read already, behind an older mark
            self._found.append(Change(glance.run, glance.number, record))
        self._seen[glance.run] = _Seen(glance.number, glance.mark, ended=record.state.terminal)

    def _forget(self, run: str) -> None:
        seen = self._seen.pop(run, None)
        if seen is not None:
            self._found.append(Change(run, seen.number, None))

    def _drop_old(self) -> None:
        ended = sorted((seen.number, run) for run, seen in self._seen.items() if seen.ended)
        for _, run in ended[:-ENDED_MAX]:
            del self._seen[run]

"""A tenant's list of runs as it changes: looked at once for all who read it at this gateway.

A feed is a log that keeps the newest record of each run only, in order of change. A reader is a place in it, and
nothing else is kept for a reader: one that is slow finds, whenever it comes, what each run is by then. What no list
shows any more is dropped after a while; a reader whose place is before that is given the whole list anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec

from holdfast.aio import Owner, wait_event
from holdfast.domain.errors import HoldfastError, StoreUnavailable
from holdfast.domain.events import encode_json
from holdfast.engine.lists import ENDED_MAX, Change, ListWatch
from holdfast.gateway.views import run_view
from holdfast.ports.store import RunRecord

PACE_S: Final = 0.2  # between two looks, and between two batches for one reader
BATCH_MAX: Final = 200  # frames for one reader in one pace
LOOK_S: Final = 1.0  # a look that no wake asked for: what a lost wake costs
LOOK_LIMIT_S: Final = 10.0
SNAPSHOT_BYTES: Final = 192 * 1024  # of records in a `runs` frame; what does not fit follows as `run` frames
KEPT_S: Final = 30.0  # how long a change is kept of a run that is not shown any more
KEPT_MAX: Final = 2000
_BUSY: Final = 2.0  # a look is followed by a pause of so many times its own length
_FRESH_S: Final = 0.5
_LINGER_S: Final = 2.0


class Batch(NamedTuple):
    """What a reader is to be told: frames as kind and JSON, its place after them, and whether there is more now."""

    frames: list[tuple[str, bytes]]
    place: int
    more: bool = False


BEFORE: Final = -1  # the place of a reader that has nothing yet


class _Entry:
    """The newest that is known of a run; without a record, that it was deleted."""

    __slots__ = ("_json", "_json_at", "_run", "at", "change", "number", "record", "session")

    def __init__(self, run: str, change: int, number: int, at: float, record: RunRecord | None, session: str) -> None:
        self.change = change
        self.number = number
        self.at = at
        self.record = record
        self.session = session
        self._run = run
        self._json = b""
        self._json_at = 0.0

    @property
    def live(self) -> bool:
        return self.record is not None and not self.record.state.terminal

    def frame(self, now: float) -> tuple[str, bytes]:
        if self.record is None:
            return "forgotten", encode_json({"id": self._run, "session": self.session})
        return "run", self.json(self.record, now)

    def json(self, record: RunRecord, now: float) -> bytes:
        """Made once for all readers; the time that is left is anew where it would not be true any more."""
        if not self._json or (record.due_in_ms is not None and now - self._json_at > _FRESH_S):
            due = record.due_in_ms
            if due is not None:
                record = msgspec.structs.replace(record, due_in_ms=max(0, due - int((now - self.at) * 1000)))
            self._json, self._json_at = encode_json(run_view(record, listed=True)), now
        return self._json


class Feed:
    """One tenant's list, for as long as somebody reads it.

    Attributes:
        ready: Whether it was looked at.
        over: It is not looked at any more.
        error: Why nobody can be told what is new; who reads it is told that, and comes back.
    """

    def __init__(self, watch: ListWatch, outage_s: float) -> None:
        """Nothing is known yet; for `outage_s` the store may be unavailable before readers are told."""
        self.ready = self.over = False
        self.error: HoldfastError | None = None
        self.readers = 0
        self._failing: StoreUnavailable | None = None
        self._failing_since = 0.0
        self._watch = watch
        self._outage_s = outage_s
        self._loop = asyncio.get_running_loop()
        self._left_at = self._loop.time()
        self._news = asyncio.Event()
        self._change = 0
        self._lost = 0  # a reader before this change lacks something that was dropped
        self._entries: dict[str, _Entry] = {}

    async def opened(self) -> None:
        """Wait for the first look.

        Raises:
            HoldfastError: The last look failed.
        """
        until = self._loop.time() + LOOK_LIMIT_S + 1
        while True:
            if (error := self.error or self._failing) is not None:
                raise error
            if self.ready:
                return
            if self._loop.time() > until:
                raise StoreUnavailable(f"no list within {LOOK_LIMIT_S:.0f} s")
            await wait_event(self._news, 1.0)

    async def changed(self, place: int, limit_s: float) -> None:
        """Return when there is something after `place`, or an error, or after `limit_s` seconds."""
        if self._change <= place and self.error is None:
            await wait_event(self._news, limit_s)

    def read(self, place: int, session: str | None = None) -> Batch:
        """What a reader at `place` lacks, oldest change first; the whole list where that cannot be said."""
        now = self._loop.time()
        if place < self._lost or place == BEFORE:
            return self._snapshot(now, session)
        found: list[_Entry] = []
        for entry in reversed(self._entries.values()):
            if entry.change <= place:
                break
            found.append(entry)
        found.reverse()
        part = found[:BATCH_MAX]
        frames = [entry.frame(now) for entry in part if session in (None, entry.session)]
        return Batch(frames, part[-1].change if part else place, len(found) > len(part))

    async def run(self) -> None:
        """Look, when a wake says so and each second, until nobody has read it for a while."""
        clock = self._loop.time
        try:
            with self._watch.subscribe() as wake:
                while self.readers or clock() < self._left_at + _LINGER_S:
                    began = clock()
                    await self._look()
                    pause = max(PACE_S, _BUSY * (clock() - began))
                    await asyncio.sleep(pause)
                    await wake.wait(max(0.0, LOOK_S - pause))
        finally:
            self.over = True
            self.error = self.error or HoldfastError("not_ready", "this list is not followed any more; ask again")
            self._tell()

    def left(self) -> None:
        """A reader has left."""
        self.readers -= 1
        self._left_at = self._loop.time()

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(LOOK_LIMIT_S):
                changes = await self._watch.look()
        except (StoreUnavailable, TimeoutError) as error:
            self._failed(error if isinstance(error, StoreUnavailable) else StoreUnavailable("roster: no answer"))
            return
        self._failing = self.error = None
        if changes or not self.ready:
            self.ready = True
            self._take(changes)
            self._tell()

    def _failed(self, error: StoreUnavailable) -> None:
        now = self._loop.time()
        if self._failing is None:
            self._failing_since = now
        self._failing = error
        if now - self._failing_since > self._outage_s:
            self.error = error
        self._tell()  # who waits for the first look is answered now

    def _take(self, changes: list[Change]) -> None:
        now = self._loop.time()
        for change in changes:
            before = self._entries.get(change.run)
            if before is not None and _same(before.record, change.record):
                continue  # it changed between the glance and the reading, and was read as it is now
            self._entries.pop(change.run, None)
            self._change += 1
            session = change.record.session if change.record else before.session if before else ""
            self._entries[change.run] = _Entry(change.run, self._change, change.number, now, change.record, session)
        self._drop(now)

    def _drop(self, now: float) -> None:
        over = [(run, entry) for run, entry in self._entries.items() if not entry.live]
        if len(over) <= ENDED_MAX:
            return
        shown = {run for _, run in sorted(((e.number, run) for run, e in over if e.record), reverse=True)[:ENDED_MAX]}
        hidden = [(run, entry) for run, entry in over if run not in shown]
        for n, (run, entry) in enumerate(hidden):
            if now - entry.at < KEPT_S and len(hidden) - n <= KEPT_MAX:
                return
            self._lost = entry.change
            del self._entries[run]

    def _shown(self, now: float, session: str | None) -> list[bytes]:
        """The records of the list, newest first."""
        entries = [e for e in self._entries.values() if e.record and session in (None, e.session)]
        entries.sort(key=lambda entry: entry.number, reverse=True)
        found, ended = [], 0
        for entry in entries:
            if entry.record is not None and (entry.live or ended < ENDED_MAX):
                ended += not entry.live
                found.append(entry.json(entry.record, now))
        return found

    def _snapshot(self, now: float, session: str | None) -> Batch:
        records = self._shown(now, session)
        size = fits = 0
        for record in records:
            size += len(record)
            if size > SNAPSHOT_BYTES:
                break
            fits += 1
        rest = [("run", record) for record in records[fits:]]
        return Batch([("runs", _page(records[:fits])), *rest], self._change)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class Feeds:
    """The feeds that are read at this gateway; each ends a moment after its last reader."""

    def __init__(self, owner: Owner, follow: Callable[[str], ListWatch], outage_s: float) -> None:
        """`follow` begins to follow a tenant's list; `owner` keeps the tasks."""
        self._owner = owner
        self._follow = follow
        self._outage_s = outage_s
        self._feeds: dict[str, Feed] = {}

    def __len__(self) -> int:
        """How many lists are followed."""
        return len(self._feeds)

    @contextmanager
    def join(self, tenant: str) -> Iterator[Feed]:
        """Read a tenant's list, for as long as the context lasts."""
        feed = self._feeds.get(tenant)
        if feed is None or feed.over:
            feed = self._feeds[tenant] = Feed(self._follow(tenant), self._outage_s)
            self._owner.spawn(feed.run(), "list").add_done_callback(lambda _: self._ended(tenant, feed))
        feed.readers += 1
        try:
            yield feed
        finally:
            feed.left()

    def _ended(self, tenant: str, feed: Feed) -> None:
        if self._feeds.get(tenant) is feed:
            del self._feeds[tenant]


def _same(one: RunRecord | None, other: RunRecord | None) -> bool:
    """Whether two readings of a run differ in nothing but in how far its log and its time have come."""
    if one is None or other is None:
        return one is other
    passing = {"seq": 0, "due_in_ms": None, "lease_left_ms": None}
    return msgspec.structs.replace(one, **passing) == msgspec.structs.replace(other, **passing)


def _page(records: list[bytes]) -> bytes:
    return b'{"runs":[%b]}' % b",".join(records)

"""The appender: turns what an agent does into the run's log, in order, coalesced, acknowledged, fenced.

Deltas are coalesced, never dropped: the first goes at once, the rest at most every `flush_ms`, or at `flush_bytes`,
or before any other event. A batch whose outcome is unknown is frozen and repeated byte for byte before anything
else. Nobody sees an event before the store has acknowledged it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any, Final

import msgspec

from holdfast.aio import Owner, settle, wait_event
from holdfast.config import Settings
from holdfast.domain.digest import Digest
from holdfast.domain.errors import RunEnded, StoreUnavailable
from holdfast.domain.events import EventType, encode_event
from holdfast.domain.runs import Reason
from holdfast.ports.clock import Clock
from holdfast.ports.store import Appended, Claim, RunStore, Status
from holdfast.telemetry import Follower

_DELTAS: Final = frozenset({EventType.TEXT_DELTA, EventType.REASONING_DELTA, EventType.TOOL_ARGS})
_BATCH_MAX: Final = 500
_DELTA_CHARACTERS_MAX: Final = 64 * 1024
_RETRY_S: Final = 0.1
_RETRY_MAX_S: Final = 1.0
_IDLE_S: Final = 60.0
_EVENT_BYTES: Final = 150  # what an event costs besides its text


class Lost(Exception):
    """The store says that somebody else has the run, or that it lost data: write nothing more."""

    def __init__(self, status: Status) -> None:
        """Keep the store's word."""
        super().__init__(f"lost: {status}")
        self.status = status


class _Pending:
    __slots__ = ("checkpoint", "chunks", "consumed", "fields", "key", "kind", "size", "wall_ms")

    def __init__(self, kind: EventType, fields: dict[str, Any], wall_ms: int, key: Any) -> None:
        self.kind = kind
        self.fields = fields
        self.wall_ms = wall_ms
        self.key = key  # deltas with the same key run together
        self.chunks: list[str] = []
        self.size = _EVENT_BYTES if key is not None else _size(fields)
        self.checkpoint: bytes | None = None
        self.consumed = 0  # the last steered input that is read with this event

    def encode(self, seq: int, run: str) -> bytes:
        fields = self.fields
        if self.chunks:
            fields = fields | {_text_field(self.kind): "".join(self.chunks)}
        return encode_event(seq, run, self.kind, self.wall_ms, fields)


class Appender:
    """The one writer of one claim's log."""

    def __init__(
        self,
        store: RunStore,
        claim: Claim,
        settings: Settings,
        clock: Clock,
        owner: Owner,
        fold: Digest,
        follower: Follower,
    ) -> None:
        """Begin at the claim's head; `fold` is kept up to date with everything that is put, and `follower` told."""
        self._store = store
        self._claim = claim
        self._settings = settings
        self._clock = clock
        self._owner = owner
        self._pending: deque[_Pending] = deque()
        self._bytes = 0
        self._log_bytes = 0
        self._dirty = asyncio.Event()
        self._urgent = asyncio.Event()
        self._acked = asyncio.Event()
        self._put_count = 0
        self._acked_count = 0
        self._last_flush = 0.0
        self._closed = False
        self.writing_since: float | None = None  # the batch in flight, by time.monotonic()
        self._follower = follower
        self._frozen: tuple[list[bytes], bytes | None, int] | None = None
        self.fold = fold
        self.head = claim.base
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self._task = owner.spawn(self._flush_forever(), f"appender {claim.key.run}")

    def put(
        self, kind: EventType, fields: dict[str, Any], checkpoint: bytes | None = None, *, consumed: int = 0
    ) -> None:
        """Queue one event; after `close` it is dropped, because a fenced run writes nothing more."""
        if self._closed:
            return
        self.fold.feed(kind, fields)
        self._put_count += 1
        key = _delta_key(kind, fields)
        text = fields[_text_field(kind)] if key is not None else ""
        last = self._pending[-1] if self._pending else None
        if last is None or key is None or last.key != key or last.checkpoint is not None or _full(last):
            last = _Pending(kind, fields, self._clock.wall_ms(), key)
            self._pending.append(last)
            self._bytes += last.size
        if key is not None:
            last.chunks.append(text)
            last.size += len(text)
            self._bytes += len(text)
        else:
            self._urgent.set()
            self._follower.event(kind, fields)
        if checkpoint is not None:
            last.checkpoint = checkpoint
            self._urgent.set()
        last.consumed = consumed
        if self._bytes >= self._settings.flush_bytes:
            self._urgent.set()
        self._dirty.set()

    def save(self, checkpoint: bytes) -> None:
        """A checkpoint that covers everything put so far."""
        if self._pending:
            self._pending[-1].checkpoint = checkpoint
            self._urgent.set()
        else:
            self._orphan_checkpoint(checkpoint)

    async def room(self) -> None:
        """Wait while more than `buffer_bytes` are unacknowledged: this is what slows a model down.

        Raises:
            RunEnded: The log has grown beyond `log_bytes`.
        """
        if self._log_bytes > self._settings.log_bytes:
            raise RunEnded(
                Reason.BUDGET,
                "log_bytes",
                f"the run's log exceeds log_bytes = {self._settings.log_bytes}",
                remedy="raise log_bytes, or ask for less",
            )
        while self._bytes > self._settings.buffer_bytes and not self._over():
            self._acked.clear()
            await wait_event(self._acked, 1.0)

    async def flush(self) -> None:
        """Return once everything put so far is acknowledged, or the appender has failed or closed."""
        target = self._put_count
        self._urgent.set()
        self._dirty.set()
        while self._acked_count < target and not self._over():
            self._acked.clear()
            await wait_event(self._acked, 1.0)

    async def close(self, limit_s: float) -> list[bytes]:
        """Take nothing more, let the batch in flight end, and hand over what is still unwritten, encoded.

        Raises:
            Lost: The run is somebody else's.
            StoreUnavailable: The batch in flight did not end in `limit_s` seconds.
        """
        self._closed = True
        self._urgent.set()
        self._dirty.set()
        if await settle([self._task], limit_s):
            self._task.cancel()
            raise StoreUnavailable(f"append: no answer in {limit_s} s (run={self._claim.key.run})")
        failure = self.failed.result() if self.failed.done() else None
        if isinstance(failure, Lost):
            raise failure
        if self._frozen is not None:  # its outcome is unknown: as it was, before anything else
            await self._write(*self._frozen, limit_s)
        run = self._claim.key.run
        # A steered input whose reading was not stored stays in the inbox, and becomes a run of its own.
        rest = enumerate((p for p in self._pending if p.key is not _CARRIER and not p.consumed), self.head + 1)
        return [p.encode(seq, run) for seq, p in rest]

    def take_back(self) -> None:
        """The last event, which `close` handed over and the store refused: the run's end comes in its place."""
        self._pending.pop()
        self._closed = False

    def abandon(self) -> None:
        """Write nothing more at all."""
        self._closed = True
        self._pending.clear()
        self._task.cancel()

    def _over(self) -> bool:
        return self._closed or self.failed.done() or self._task.done()

    def _orphan_checkpoint(self, checkpoint: bytes) -> None:
        """Nothing is queued to carry it: an empty batch does."""
        carrier = _Pending(EventType.DEGRADED, {}, 0, _CARRIER)
        carrier.checkpoint = checkpoint
        self._bytes += carrier.size
        self._put_count += 1
        self._pending.append(carrier)
        self._urgent.set()
        self._dirty.set()

    async def _flush_forever(self) -> None:
        try:
            while not self._closed:
                if not await wait_event(self._dirty, _IDLE_S):
                    continue
                await self._coalesce()
                if not self._closed:
                    await self._flush_once()
        except (Lost, StoreUnavailable) as error:
            if not self.failed.done():
                self.failed.set_result(error)
        except Exception as error:  # noqa: BLE001 - told to the executor, which ends the run with it
            if not self.failed.done():
                self.failed.set_result(error)
        finally:
            self._acked.set()

    async def _coalesce(self) -> None:
        """Let deltas gather, unless something is urgent or the last flush was long ago."""
        due = self._last_flush + self._settings.flush_ms / 1000
        left = due - asyncio.get_running_loop().time()
        if left > 0 and not self._urgent.is_set():
            await wait_event(self._urgent, left)

    async def _flush_once(self) -> None:
        batch = self._take()
        if not batch:
            return
        if batch[-1].kind in _DELTAS:  # another event holds back no delta after it
            self._last_flush = asyncio.get_running_loop().time()
        seqs = enumerate((p for p in batch if p.key is not _CARRIER), self.head + 1)
        events = [p.encode(seq, self._claim.key.run) for seq, p in seqs]
        count = sum(max(1, len(p.chunks)) for p in batch)
        try:
            consumed = max(p.consumed for p in batch)
            await self._write(events, batch[-1].checkpoint, consumed, self._settings.store_outage_s)
        except StoreUnavailable as error:
            if error.full:  # refused, not unknown: the end of the run carries it
                self._pending.extendleft(reversed(batch))
                self._frozen = None
            raise
        self._log_bytes += sum(map(len, events))
        self._bytes = max(0, self._bytes - sum(p.size for p in batch))
        self._acked_count += count
        self._acked.set()

    def _take(self) -> list[_Pending]:
        """What is queued, up to the last checkpoint among the first `_BATCH_MAX`: it covers what is before it."""
        items = [self._pending[i] for i in range(min(len(self._pending), _BATCH_MAX))]
        last = max((i for i, p in enumerate(items) if p.checkpoint is not None), default=len(items) - 1)
        batch = items[: last + 1]
        for _ in batch:
            self._pending.popleft()
        if not self._pending:
            self._dirty.clear()
            self._urgent.clear()
        return batch

    async def _write(self, events: list[bytes], checkpoint: bytes | None, consumed: int, limit_s: float) -> None:
        """One frozen batch, repeated as it is until the store has said what became of it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        self._frozen = (events, checkpoint, consumed)
        self.writing_since = time.monotonic()
        pause = _RETRY_S
        while True:
            try:
                answer = await self._append(events, checkpoint, consumed)
            except StoreUnavailable as error:
                if error.full or loop.time() + pause > until:
                    raise
                await asyncio.sleep(pause)
                pause = min(_RETRY_MAX_S, pause * 2)
            else:
                self.head = self._judge(answer)
                self._frozen = self.writing_since = None
                return

    async def _append(self, events: list[bytes], checkpoint: bytes | None, consumed: int) -> Appended:
        began = time.monotonic()
        answer = await self._store.append(self._claim.key, self._claim.fence, self.head, events, checkpoint, consumed)
        self._follower.appended(time.monotonic() - began)
        return answer

    @staticmethod
    def _judge(answer: Appended) -> int:
        if answer.status in (Status.OK, Status.DUP):
            return answer.head
        raise Lost(answer.status)


_CARRIER: Final = object()


def _text_field(kind: EventType) -> str:
    return "delta" if kind is EventType.TOOL_ARGS else "text"


def _delta_key(kind: EventType, fields: dict[str, Any]) -> Any:
    if kind not in _DELTAS:
        return None
    return (kind, fields["call"] if kind is EventType.TOOL_ARGS else fields["part"])


def _full(pending: _Pending) -> bool:
    return pending.size >= _DELTA_CHARACTERS_MAX


def _size(fields: dict[str, Any]) -> int:
    return _EVENT_BYTES + len(msgspec.json.encode(fields, enc_hook=str))

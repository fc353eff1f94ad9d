"""The store on Redis: each operation one script, atomic and idempotent by its key. See `holdfast.ports.store`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

import msgspec

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.events import EventType, encode_event
from holdfast.domain.ids import RunKey, new_claim_token
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Reason, State
from holdfast.ports.store import (
    ROSTER_MADE,
    UNCAPPED,
    Appended,
    Claim,
    Created,
    Ending,
    Fence,
    Held,
    InputItem,
    NewRun,
    Page,
    Reaped,
    Renewal,
    Roster,
    RunningCaps,
    RunRecord,
    SessionRecord,
    Status,
    Stopped,
    Wake,
    WorkerRecord,
    run_topic,
)
from holdfast.stores.composing import (
    DRAIN_MS,
    DRAIN_RUNS,
    FINISHES,
    LINGER_MS,
    OVERDUE_MS,
    PAGE_BYTES,
    REAP_GAP_MS_MAX,
    TIMERS,
    begins,
    created_fields,
    result_of,
)
from holdfast.stores.redis.address import address
from holdfast.stores.redis.ends import Ends
from holdfast.stores.redis.facts import Fact, complaint, durability, look
from holdfast.stores.redis.heart import RedisHeart, renewal_arguments, renewals
from holdfast.stores.redis.link import Argument, Link
from holdfast.stores.redis.opening import connect
from holdfast.stores.redis.questions import Questions
from holdfast.stores.redis.rows import (
    claim_of,
    ended_of,
    history_of,
    page_of,
    reason_of,
    record_of,
    roster_of,
    session_of,
    shed_of,
    spec_of,
    uid,
    worker_of,
)
from holdfast.stores.redis.scripts import Script, scripts
from holdfast.stores.redis.sharing import SharedReads
from holdfast.stores.redis.subscriber import Subscriber

_TAIL_POLL_S: Final = 1.0
_SWEEP_STEPS_MAX: Final = 1000
_PLACE_TRIES_MAX: Final = 20

LIBRARY: Final = scripts()  # read once, when this module is imported

Say = Callable[..., None]


def _nothing(event: str, **facts: object) -> None:
    """Where nobody listens to what goes wrong in the background: `health` says it too."""


class RedisStore:
    """`redis://host:port/db`. All connections belong to the loop that opened it; any loop may use it."""

    lock_fd: None = None  # any number of processes share a Redis

    def __init__(self, link: Link, subscriber: Subscriber, looked: tuple[list[Fact], float]) -> None:
        """Use `open`."""
        self.url = link.address.shown
        self.facts, self._skew_s = looked
        self._link = link
        self._ends = Ends(link)
        self._subscriber = subscriber
        self.questions = Questions(link, self.subscribe)
        self._shared = SharedReads(self.read)

    @classmethod
    async def open(cls, url: str, *, say: Say = _nothing, library: Mapping[str, Script] = LIBRARY) -> RedisStore:
        """Connect, look at the facts, subscribe.

        Args:
            url: As for `address`.
            say: Takes what goes wrong in the background, as the log does: an event and its facts.
            library: The scripts; replaced by tests.

        Raises:
            StoreError: It cannot be used; says why and what to do.
        """
        return cls(*await connect(address(url), say, library))

    async def create(self, new: NewRun) -> Created:
        """See the port."""
        limits, spec = new.limits, new.spec
        wall = self._wall()
        created = encode_event(
            1, new.key.run, EventType.RUN_CREATED, wall, created_fields(new.session, spec, new.policy)
        )
        status, record, *more = await self._ends.step(
            "create",
            *(new.key.tenant, new.key.run, new.session, new.policy.value, new.idempotency_key, new.body_hash),
            *(limits.deadline_ms, limits.queue_timeout_ms, limits.session_wait_ms, limits.attempts_max),
            *(limits.queued_behind_max, limits.runs_active_max, new.listener_ms),
            *(limits.runs_queued_max, limits.tenant_active_max, limits.tenant_queued_max, DRAIN_MS, DRAIN_RUNS),
            new.follows,
            *(msgspec.json.encode(spec), spec.trace, int(spec.rehearsal), created, spec.input),
        )
        ended = [run.decode() for run in more[0]] if more else []
        return Created(Status(status.decode()), record_of(record), ended, shed_of(more))

    async def claim(self, worker: str, n: int, lease_ms: int, caps: RunningCaps = UNCAPPED) -> list[Claim]:
        """See the port."""
        try:
            tokens = (new_claim_token() for _ in range(n))
            reply = await self._link.call("claim", worker, lease_ms, caps.deployment, caps.tenant, *tokens)
        except StoreUnavailable as error:
            if error.full:  # nothing can be begun: that is no fault to repeat, but a queue that waits
                return []
            raise
        return [claim_of(each) for each in reply]

    async def renew(self, worker: str, held: Sequence[Held], lease_ms: int) -> list[Renewal]:
        """See the port."""
        return renewals(held, await self._link.call("renew", *renewal_arguments(worker, held, lease_ms, b"")))

    async def append(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes | None = None,
        consumed: int = 0,
    ) -> Appended:
        """See the port."""
        saved = (int(checkpoint is not None), checkpoint or b"")
        return _appended(await self._link.call("append", *_fenced(key, fence, base, events), consumed, *saved, *events))

    async def finish(self, key: RunKey, fence: Fence, base: int, events: Sequence[bytes], ending: Ending) -> Appended:
        """See the port."""
        entry = msgspec.json.encode(ending.history) if ending.history is not None else b""
        result = msgspec.json.encode(result_of(ending), enc_hook=str)
        return _appended(
            await self._ends.step(
                "finish",
                *_fenced(key, fence, base, events),
                *(FINISHES[ending.state].value, ending.state.value, ending.reason.value),
                *(int(ending.leave_inbox), result, entry, int(ending.rehearsal), len(events)),
                *events,
                more=events,
            )
        )

    async def park(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes,
        approval_ms: int,
    ) -> Appended:
        """See the port."""
        fenced = _fenced(key, fence, base, events)
        return _appended(await self._link.call("park", *fenced, approval_ms, checkpoint, *events))

    async def decide(self, key: RunKey, fields: Mapping[str, Any], base: int) -> Appended:
        """See the port."""
        event = encode_event(base + 1, key.run, EventType.RUN_DECIDED, self._wall(), fields)
        return _appended(await self._link.call("decide", uid(key), base, event))

    async def resume(self, key: RunKey, decisions: Sequence[dict[str, Any]], base: int | None = None) -> Appended:
        """See the port."""
        fields = {"decisions": list(decisions)}
        encoded = msgspec.json.encode(fields["decisions"])
        wall, head, event = self._wall(), -1, b""
        for _ in range(_PLACE_TRIES_MAX):
            reply = await self._link.call("resume", uid(key), encoded, head, event)
            if reply[0] != b"compose":
                return _appended(reply)
            head = reply[1]
            if base not in (None, head):
                return Appended(Status.GAP, head)
            event = encode_event(head + 1, key.run, EventType.RUN_RESUMED, wall, fields)
        raise StoreUnavailable(f"resume: the log grew {_PLACE_TRIES_MAX} times meanwhile; repeat it (run={key.run})")

    async def release(self, key: RunKey, fence: Fence) -> Appended:
        """See the port."""
        return _appended(await self._ends.step("release", uid(key), fence.epoch, fence.claim))

    async def request_stop(self, key: RunKey, reason: Reason, by: str) -> Stopped:
        """See the port."""
        status, record, *ends = await self._ends.step("stop", uid(key), reason.value, by)
        return Stopped(Status(status.decode()), record_of(record), [ended_of(end) for end in ends[0]] if ends else [])

    async def listen(self, keys: Sequence[RunKey], lease_ms: int) -> list[RunKey]:
        """See the port."""
        return [keys[n] for n in await self._link.call("listen", lease_ms, *map(uid, keys))]

    async def steer(self, key: RunKey, text: str, idempotency_key: str = "", *, unread_max: int = 16) -> Status:
        """See the port."""
        return Status((await self._link.call("steer", uid(key), text, idempotency_key, unread_max)).decode())

    async def inbox(self, key: RunKey) -> list[InputItem]:
        """See the port."""
        items = await self._link.call("inbox", uid(key))
        return [InputItem(int(entry.partition(b"-")[0]), text.decode()) for entry, text in items]

    async def edit_input(self, key: RunKey, text: str) -> Status:
        """See the port."""
        wall, head, spec, event = self._wall(), -1, b"", b""
        for _ in range(_PLACE_TRIES_MAX):
            status, *place = await self._link.call("edit_input", uid(key), head, spec, event)
            if status != b"compose":
                return Status(status.decode())
            head = place[0]
            spec = msgspec.json.encode(msgspec.structs.replace(spec_of(place[1]), input=text))
            event = encode_event(head + 1, key.run, EventType.RUN_EDITED, wall, {"input": text})
        raise StoreUnavailable(f"edit_input: the log grew {_PLACE_TRIES_MAX} times meanwhile (run={key.run})")

    async def reap(self, limit: int, grace_ms: int) -> list[Reaped]:
        """See the port."""
        gap, ends = await self._link.call("reap", limit, REAP_GAP_MS_MAX)
        told = map(ended_of, ends)
        reaped = [Reaped(end.key, end.session, end.state, end.reason, [end]) for end in told]
        if gap:
            return reaped
        timers = [value for trigger, name, graced in TIMERS for value in (trigger.value, name, int(graced))]
        try:
            for run, trigger, name in await self._link.call("due", limit, grace_ms, *timers):
                done = await self._ends.step("settle", run, trigger, name, grace_ms)
                if done is not None:
                    reaped.append(_reaped(done))
        except StoreUnavailable:
            if not reaped:
                raise
        return reaped  # also where the rest failed: the caller tells what was done, and reaps again

    async def next_due_ms(self) -> int | None:
        """See the port."""
        due: int | None = await self._link.call("next_due")
        return due

    async def disown(self, workers: Sequence[str] | None = None) -> int:
        """See the port."""
        if workers is not None and not workers:
            return 0
        count: int = await self._link.call("disown", *(workers or ()))
        return count

    async def bury(self, worker: str, blamed: RunKey | None = None) -> list[Reaped]:
        """See the port."""
        reaped = []
        for run in await self._link.call("held_by", worker):
            whom = "no" if blamed is None else "this" if run.decode() == uid(blamed) else "another"
            done = await self._ends.step("bury", run, worker, whom)
            if done is not None:
                reaped.append(_reaped(done))
        return reaped

    async def read(self, key: RunKey, after: int, limit: int = 500, epoch: int | None = None) -> Page:
        """See the port."""
        named = "" if epoch is None else epoch
        return page_of(after, await self._link.call("read", uid(key), after, limit, PAGE_BYTES, named))

    async def tail(self, key: RunKey, after: int, limit: int = 500) -> AsyncIterator[Page]:
        """See the port."""
        read = self._shared.read if self._link.is_here() else self.read
        with self.subscribe(run_topic(key)) as wake:
            while True:
                page = await read(key, after, limit)
                yield page
                if page.status is not Status.OK or page.resync:
                    return
                after += len(page.events)
                if page.state.terminal and after >= page.head:
                    return
                if after >= page.head:
                    await wake.wait(_TAIL_POLL_S)

    async def get(self, key: RunKey) -> RunRecord | None:
        """See the port."""
        return record_of(await self._link.call("get", uid(key)))

    async def list_runs(
        self,
        tenant: str,
        *,
        session: str | None = None,
        state: State | None = None,
        limit: int = 50,
        after: str = "",
    ) -> list[RunRecord]:
        """See the port."""
        wanted = "" if state is None else state.value
        found = await self._link.call(
            "list_runs", tenant, session or "", wanted, limit, after, int(session is not None)
        )
        return [record for record in map(record_of, found) if record is not None]

    async def roster(self, tenant: str, since: int, known: Sequence[str]) -> Roster:
        """See the port."""
        return roster_of(await self._link.call("roster", tenant, since, ROSTER_MADE, *known))

    async def active(self, tenant: str, session: str) -> RunRecord | None:
        """See the port."""
        return record_of(await self._link.call("active", tenant, session))

    async def history(self, tenant: str, session: str) -> list[HistoryEntry]:
        """See the port."""
        return history_of(await self._link.call("history", tenant, session))

    async def list_sessions(self, tenant: str, *, limit: int = 50, after: str = "") -> list[SessionRecord]:
        """See the port."""
        found = await self._link.call("list_sessions", tenant, limit, after)
        return [record for record in map(session_of, found) if record is not None]

    async def get_session(self, tenant: str, session: str) -> SessionRecord | None:
        """See the port."""
        return session_of(await self._link.call("get_session", tenant, session))

    async def delete_session(self, tenant: str, session: str, by: str) -> Status:
        """See the port."""
        (status,) = await self._ends.step("delete_session", tenant, session, by)
        return Status(status.decode())

    async def forget(self, key: RunKey) -> Status:
        """See the port."""
        (status,) = await self._link.call("forget", uid(key))
        return Status(status.decode())

    async def workers(self) -> list[WorkerRecord]:
        """See the port."""
        return sorted(map(worker_of, await self._link.call("workers")), key=lambda record: record.worker)

    async def health(self) -> dict[str, Any]:
        """See the port; never raises, a failure is the fact `error`."""
        facts: dict[str, Any] = {"kind": "redis", "path": self.url, "wakes": self._subscriber.connected, "ready": 0}
        try:
            self.facts, self._skew_s = await self._link.on_loop(self._look())
            counts, ready, ready_age_ms, log_bytes, overdue = await self._link.call("counts", OVERDUE_MS)
        except Exception as error:  # noqa: BLE001 - health reports, it does not fail
            return facts | {"error": f"{type(error).__name__}: {error}"}
        runs = dict(zip((state.decode() for state in counts[::2]), map(int, counts[1::2]), strict=True))
        facts |= {
            "runs": runs,
            "ready": ready,
            "ready_age_ms": ready_age_ms,
            "log_bytes": log_bytes,
            "overdue": overdue,
        }
        facts |= {"durability": self.durability} | {fact.name.replace("-", "_"): fact.value for fact in self.facts}
        bad = [fact for fact in self.facts if not fact.ok and (fact.required or fact.name in ("memory", "saving"))]
        if bad:
            facts |= {"low_space": any(fact.name == "memory" for fact in bad), "error": complaint(bad[0])}
        return facts

    async def _look(self) -> tuple[list[Fact], float]:
        async with self._link.connected() as conn:
            return await look(conn)

    @property
    def durability(self) -> str:
        """What is lost when, as of the last look."""
        return durability(self.facts)

    def held_up_s(self) -> float:
        """How long a write has waited for another process: never, scripts are short."""
        return 0.0

    def broken(self) -> str:
        """What has ended that only a new process can begin again: nothing, connections are made anew."""
        return ""

    async def sweep(self, *, older_than_ms: int, bytes_max: int, limit: int = 100) -> int:
        """See the port."""
        marked: int = await self._link.call("sweep_mark", older_than_ms, bytes_max, limit, LINGER_MS)
        for _ in range(_SWEEP_STEPS_MAX):
            if not await self._link.call("sweep_delete"):
                break
        _ = await self._link.call("sweep_bury", max(older_than_ms, LINGER_MS), limit)
        return marked

    def subscribe(self, topic: str) -> AbstractContextManager[Wake]:
        """See the port."""
        return self._subscriber.subscribe(topic)

    def heart(self) -> RedisHeart:
        """See the port."""
        return RedisHeart(self._link.address, self._link.library["renew"])

    async def close(self) -> None:
        """See the port."""
        await self._link.on_loop(self._close())

    async def _close(self) -> None:
        await self._subscriber.close()
        await self._shared.close()
        await self._link.close()

    def _wall(self) -> int:
        """The store's wall clock as of the last look, for an event that is encoded before its step."""
        return int((time.time() + self._skew_s) * 1000)


def _fenced(key: RunKey, fence: Fence, base: int, events: Sequence[bytes]) -> tuple[Argument, ...]:
    return uid(key), fence.epoch, fence.claim, base, int(begins(events))


def _appended(reply: list[Any]) -> Appended:
    status, head, *ends = reply
    return Appended(Status(status.decode()), head, [ended_of(end) for end in ends[0]] if ends else [])


def _reaped(reply: list[Any]) -> Reaped:
    tenant, run, session, outcome, reason, ends = reply
    key = RunKey(tenant.decode(), run.decode())
    return Reaped(key, session.decode(), outcome.decode(), reason_of(reason), [ended_of(end) for end in ends])

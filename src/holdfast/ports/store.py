"""The store: the one place where runs, sessions and logs live, and the rules that hold under every race.

Results are values; `StoreUnavailable` alone is raised, and means that the outcome is unknown: the caller repeats
the call as it was, which is safe, because each operation is idempotent by its key. holdfast.testing has the
conformance suite that every adapter passes.

Who tells of an end: a run that its own worker finished is told by that worker. Where somebody else ends a run, the
step itself decides. If another run of the session is to begin, that one's claim hands the end over (`Claim.before`),
so that it is told before the start of its successor, in whatever process; else the answer of the step has it (`ends`).

Times: `*_ms` durations in milliseconds; `*_at` are wall milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry
from holdfast.domain.runs import Reason, State
from holdfast.ports.records import (
    UNCAPPED,
    Appended,
    Cap,
    Claim,
    Created,
    Ended,
    Ending,
    Fence,
    Glance,
    Held,
    InputItem,
    Limits,
    NewRun,
    Page,
    Reaped,
    Renewal,
    Roster,
    RunningCaps,
    RunRecord,
    RunSpec,
    SessionRecord,
    Shed,
    Status,
    Stopped,
    WorkerRecord,
)

__all__ = [
    "CONTROL_TOPIC",
    "READY_TOPIC",
    "ROSTER_MADE",
    "STOP_TOPIC",
    "UNCAPPED",
    "Appended",
    "Cap",
    "Claim",
    "Created",
    "Ended",
    "Ending",
    "Fence",
    "Glance",
    "Heart",
    "Held",
    "InputItem",
    "Limits",
    "NewRun",
    "Page",
    "Reaped",
    "Renewal",
    "Roster",
    "RunRecord",
    "RunSpec",
    "RunStore",
    "RunningCaps",
    "SessionRecord",
    "Shed",
    "Status",
    "Stopped",
    "Wake",
    "WorkerRecord",
    "list_topic",
    "run_topic",
    "whole_topic",
    "worker_topic",
]


class Wake(Protocol):
    """A hint that something changed. A lost wake costs its waiter at most the timeout."""

    async def wait(self, timeout_s: float) -> bool:
        """Return at the next hint, or after `timeout_s` seconds; whether there was one. Hints are merged."""
        ...


class Heart(Protocol):
    """Lease renewal on a connection of its own, for a thread that must not wait for anybody else's writes."""

    def renew(self, worker: str, held: Sequence[Held], lease_ms: int, facts: dict[str, Any]) -> list[Renewal]:
        """As `RunStore.renew`, blocking, and report `facts` for `workers`."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class RunStore(Protocol):
    """Operations on runs; each is one atomic step."""

    async def create(self, new: NewRun) -> Created:
        """Make a run, in a session that its policy decides about.

        Order of checks: idempotency key, run id, what it follows, policy, admission. supersede flags the active run
        and ends all queued ones in the same step. The log begins with run.created.

        Admission counts the unfinished and the queued runs, of the tenant, then of the deployment. A prompt that
        supersedes at least one run takes its place and is not counted anew, whatever the caps say.
        """
        ...

    async def claim(self, worker: str, n: int, lease_ms: int, caps: RunningCaps = UNCAPPED) -> list[Claim]:
        """Hand out at most `n` ready runs: round robin between tenants, first come first served within one.

        No claim brings more runs to running than `caps` allow. A tenant at its cap is passed over: it is in nobody's
        way, and has a turn again when one of its runs leaves running.
        """
        ...

    async def renew(self, worker: str, held: Sequence[Held], lease_ms: int) -> list[Renewal]:
        """Extend leases; one answer for each held run, in order."""
        ...

    async def append(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes | None = None,
        consumed: int = 0,
    ) -> Appended:
        """Append `events` (encoded with seq base+1..) and, in the same step, replace the checkpoint.

        Args:
            key: The run.
            fence: The claim under which we write.
            base: The head we believe in; repeating a call with the same base and events answers DUP.
            events: At most 1,000, each at most EVENT_BYTES_MAX bytes.
            checkpoint: What an agent needs to go on from here after a crash.
            consumed: Steered inputs up to this number are read by these events.
        """
        ...

    async def finish(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        ending: Ending,
    ) -> Appended:
        """Append, end the run, free its slot, promote the next, add to the session's history: once.

        Order of checks: terminal written by this claim -> DUP, else the fence -> FENCED, else the stop flag with
        state completed or failed -> STOP, unread steered input with state completed -> PENDING_INPUT.
        """
        ...

    async def park(
        self,
        key: RunKey,
        fence: Fence,
        base: int,
        events: Sequence[bytes],
        checkpoint: bytes,
        approval_ms: int,
    ) -> Appended:
        """Append run.waiting and give the lease back; the session's slot is kept, the deadline stands still."""
        ...

    async def resume(self, key: RunKey, decisions: Sequence[dict[str, Any]], base: int | None = None) -> Appended:
        """Append run.resumed with `decisions` to a waiting run and make it ready again, epoch + 1.

        GAP where the head is no longer `base`, if one is given: somebody else has decided meanwhile.
        """
        ...

    async def decide(self, key: RunKey, fields: Mapping[str, Any], base: int) -> Appended:
        """Append run.decided with `fields` to a waiting run, which waits on; GAP where the head is no longer `base`."""
        ...

    async def release(self, key: RunKey, fence: Fence) -> Appended:
        """Give a run back to the front of the queue, epoch + 1; a flagged run ends cancelled instead."""
        ...

    async def request_stop(self, key: RunKey, reason: Reason, by: str) -> Stopped:
        """Set the durable stop flag, first reason kept; a queued or waiting run ends in this very step."""
        ...

    async def listen(self, keys: Sequence[RunKey], lease_ms: int) -> list[RunKey]:
        """Say that somebody listens to runs made with `listener_ms`; those that still need to hear it.

        A run that nobody says it of for `lease_ms` is told to stop by reap, reason client_disconnect.
        """
        ...

    async def steer(self, key: RunKey, text: str, idempotency_key: str = "", *, unread_max: int = 16) -> Status:
        """Put an input into the inbox of a run that has not ended: OK, ENDED, UNKNOWN, GONE, or BUSY where it is full.

        A key that the run was given before is OK whatever the inbox holds, and CONFLICT with another input.
        """
        ...

    async def inbox(self, key: RunKey) -> list[InputItem]:
        """The unread steered inputs, in order."""
        ...

    async def edit_input(self, key: RunKey, text: str) -> Status:
        """Replace the input of a queued run that no worker ever began: OK, ENDED (begun or over), UNKNOWN."""
        ...

    async def reap(self, limit: int, grace_ms: int) -> list[Reaped]:
        """Requeue or end what is due: leases, deadlines, queue timeouts, stops unanswered for `grace_ms`.

        A run whose listener is due is told to stop. Ends that their step could hand to nobody (a session that was
        forgotten, a successor that never began) are handed out here, too.

        Any process may call it at any time, also at once.
        """
        ...

    async def next_due_ms(self) -> int | None:
        """Milliseconds until reap has something to do; None where nothing is timed."""
        ...

    async def disown(self, workers: Sequence[str] | None = None) -> int:
        """Expire at once the leases of workers proven dead (None: of all); how many there were."""
        ...

    async def bury(self, worker: str, blamed: RunKey | None = None) -> list[Reaped]:
        """Requeue or end at once what a worker that is proven dead held.

        Without `blamed`, as if each lease had expired. With it, the worker was killed because that run blocked its
        loop: that run ends with agent_error, code loop_blocked (cancelled, if it was told to stop), and the others
        are requeued with no attempt counted.
        """
        ...

    async def read(self, key: RunKey, after: int, limit: int = 500, epoch: int | None = None) -> Page:
        """At most `limit` events after seq `after`, fewer where they are large: a page is bounded in bytes too.

        With `epoch`, `after` names the event `<after>-<epoch>`; if the log does not have it, `resync` is set.
        """
        ...

    def tail(self, key: RunKey, after: int, limit: int = 500) -> AsyncIterator[Page]:
        """Pages from `after` on, live, until the terminal event was handed out, or GONE / UNKNOWN.

        An empty page with nothing new is handed out about once a second, so that its reader can do other work.
        """
        ...

    async def get(self, key: RunKey) -> RunRecord | None:
        """A snapshot, or None (unknown, gone, or another tenant's)."""
        ...

    async def list_runs(
        self,
        tenant: str,
        *,
        session: str | None = None,
        state: State | None = None,
        limit: int = 50,
        after: str = "",
    ) -> list[RunRecord]:
        """Newest first; `after` is the last run id of the page before."""
        ...

    async def roster(self, tenant: str, since: int, known: Sequence[str]) -> Roster:
        """How runs stand, for who follows a list: at the price of the runs that are unfinished, not of all there are.

        They are those that have not ended, the first `ROSTER_MADE` made after number `since`, and those of `known`,
        each once; none whose log is gone, and none of another tenant's.
        """
        ...

    async def active(self, tenant: str, session: str) -> RunRecord | None:
        """The run that holds the session's slot."""
        ...

    async def history(self, tenant: str, session: str) -> list[HistoryEntry]:
        """What the session's ended runs left, oldest first."""
        ...

    async def list_sessions(self, tenant: str, *, limit: int = 50, after: str = "") -> list[SessionRecord]:
        """Most recently used first; `after` is the last session id of the page before."""
        ...

    async def get_session(self, tenant: str, session: str) -> SessionRecord | None:
        """One session, or None."""
        ...

    async def delete_session(self, tenant: str, session: str, by: str) -> Status:
        """Forget a session: stop its runs, drop its history, mark its logs gone. A later create begins anew."""
        ...

    async def forget(self, key: RunKey) -> Status:
        """Drop an ended run from its session's history and mark its log gone: OK, BUSY (not ended), GONE, UNKNOWN."""
        ...

    async def workers(self) -> list[WorkerRecord]:
        """The workers that reported in the last minute."""
        ...

    async def health(self) -> dict[str, Any]:
        """Facts for start-up checks and /readyz: kind, path, version, durability, queue depth."""
        ...

    async def sweep(self, *, older_than_ms: int, bytes_max: int, limit: int = 100) -> int:
        """Forget logs of runs that ended more than `older_than_ms` ago, or the oldest over `bytes_max`.

        First marks a run gone, then deletes in small steps; a reader gets GONE, never silence. Returns how many.
        """
        ...

    def subscribe(self, topic: str) -> AbstractContextManager[Wake]:
        """Wakes of `topic`, which may be false alarms unless it is STOP_TOPIC.

        READY_TOPIC: work to claim; CONTROL_TOPIC: stops and inboxes; STOP_TOPIC: a running run was told to stop;
        `run_topic(key)`: a log has grown; `list_topic(tenant)`: a run changed its state. `worker_topic` narrows the
        first three to one worker.
        """
        ...

    def heart(self) -> Heart:
        """A connection for one heartbeat thread."""
        ...

    async def close(self) -> None:
        """Finish what is queued, then let go of everything; bounded."""
        ...


ROSTER_MADE = 200
READY_TOPIC = "ready"
CONTROL_TOPIC = "control"
STOP_TOPIC = "stop"
_OF_WORKERS = (READY_TOPIC, CONTROL_TOPIC, STOP_TOPIC)


def worker_topic(topic: str, worker: str) -> str:
    """That part of READY_TOPIC, CONTROL_TOPIC or STOP_TOPIC which concerns one worker.

    Of work to claim only a few of the workers that asked for it last and got none are woken.
    """
    return f"{topic}@{worker}"


def whole_topic(topic: str) -> str:
    """What a worker's topic is a part of, for a store that wakes everybody; any other topic as it is."""
    whole, at, _ = topic.partition("@")
    return whole if at and whole in _OF_WORKERS else topic


def run_topic(key: RunKey) -> str:
    """The topic of one run's log."""
    return f"run:{key.tenant}/{key.run}"


def list_topic(tenant: str) -> str:
    """The topic of state changes of a tenant's runs."""
    return f"list:{tenant}"

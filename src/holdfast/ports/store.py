"""The store: the one place where runs, sessions and logs live, and the rules that hold under every race.

Results are values; `StoreUnavailable` alone is raised, and means that the outcome is unknown: the caller repeats
the call as it was, which is safe, because each operation is idempotent by its key. holdfast.testing has the
conformance suite that every adapter passes.

Times: `*_ms` durations in milliseconds; `*_at` are wall milliseconds since 1970.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.domain.messages import HistoryEntry, Message
from holdfast.domain.runs import Policy, Reason, State


class Status(StrEnum):
    """What the store answers."""

    OK = "ok"
    EXISTS = "exists"  # create: this id or idempotency key with this body made a run already
    CONFLICT = "conflict"  # create: this idempotency key or id with another body
    BUSY = "busy"  # create: policy reject, or too many queued behind
    OVERLOADED = "overloaded"  # create: runs_active reached
    STEERED = "steered"  # create with policy steer: handed to the active run
    FENCED = "fenced"  # the caller does not hold the run (any more); write nothing more
    STOP = "stop"  # finish(completed | failed), park, resume: the run was told to stop; finish it cancelled
    GAP = "gap"  # head differs from base and no repeat explains it: the store lost data, or the caller did
    DUP = "dup"  # exactly this was written before by this claim
    PENDING_INPUT = "pending_input"  # finish(completed): steered input is unread
    ENDED = "ended"  # the run has its terminal event
    GONE = "gone"  # there was such a run, or such a part of its log, but it was deleted
    UNKNOWN = "unknown"  # no such run or session


class Fence(msgspec.Struct, frozen=True):
    """The right to write: the store compares both on every write, and that the run is running."""

    epoch: int
    claim: str


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked for; stored as it is and handed to the worker."""

    input: str
    agent: str
    model: str = ""
    metadata: dict[str, Any] = {}
    on_disconnect: str = "continue"
    instructions: str = ""  # a system message that holds for this run only
    settings: dict[str, Any] = {}  # sampling fields for the model
    protocol: str = "native"
    trace: str = ""
    rehearsal: bool = False
    kind: str = ""  # of the agent's native history
    context: list[Message] = []  # what was said before `input`, where the client and not the session knows it


class Limits(msgspec.Struct, frozen=True):
    """The bounds that a create is judged and timed by."""

    deadline_ms: int = 600_000
    queue_timeout_ms: int = 30_000
    session_wait_ms: int = 3_600_000
    queued_behind_max: int = 16
    runs_active_max: int = 1000
    attempts_max: int = 1


class NewRun(msgspec.Struct, frozen=True):
    """A create. `key.run` is chosen by the caller and makes the call repeatable."""

    key: RunKey
    session: str
    spec: RunSpec
    policy: Policy = Policy.SUPERSEDE
    idempotency_key: str = ""
    body_hash: str = ""
    limits: Limits = Limits()


class RunRecord(msgspec.Struct, frozen=True):
    """A snapshot of one run."""

    key: RunKey
    session: str
    spec: RunSpec
    policy: Policy
    state: State
    reason: Reason | None
    stopping: Reason | None
    seq: int  # head of the log
    epoch: int
    attempt: int
    worker: str
    created_at: int
    ready_at: int | None
    started_at: int | None
    ended_at: int | None
    position: int | None  # while queued: 0 at the head of its session, else how many runs are before it
    due_in_ms: int | None  # until the deadline, the queue timeout or the approval deadline, whichever is next
    lease_left_ms: int | None
    usage: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None
    output: str | None = None
    rehearsal: bool = False


class Created(msgspec.Struct, frozen=True):
    """The answer to create. `record` is the run of this call, or with BUSY / STEERED the active one."""

    status: Status
    record: RunRecord | None
    superseded: list[str] = []


class Claim(msgspec.Struct, frozen=True):
    """A run handed to one worker."""

    key: RunKey
    session: str
    fence: Fence
    base: int  # head of the log
    attempt: int
    attempts_max: int
    spec: RunSpec
    deadline_left_ms: int
    checkpoint: bytes | None
    checkpoint_seq: int
    created_at: int
    ready_at: int
    decisions: list[dict[str, Any]] = []


class Held(msgspec.Struct, frozen=True):
    """A run that a worker believes it holds."""

    key: RunKey
    fence: Fence


class Renewal(msgspec.Struct, frozen=True):
    """What the store says of a held run: lost, or still held; and whether it was told to stop."""

    held: Held
    lost: bool
    stop: Reason | None = None
    stop_by: str = ""
    stop_at: int = 0
    inbox: bool = False


class Appended(msgspec.Struct, frozen=True):
    """The answer to a write; `head` is the log's head as the store has it."""

    status: Status
    head: int


class Ending(msgspec.Struct, frozen=True):
    """How a run ends. The terminal event itself is the last of the events of the same call."""

    state: State
    reason: Reason
    usage: dict[str, Any] = {}
    error: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = None
    output: str | None = None
    history: HistoryEntry | None = None  # None: the store derives it from input, checkpoint and log
    rehearsal: bool = False
    leave_inbox: bool = False  # unread steered input becomes one queued run instead of PENDING_INPUT


class Stopped(msgspec.Struct, frozen=True):
    """The answer to request_stop: OK (flagged or ended now), ENDED before, UNKNOWN or GONE."""

    status: Status
    record: RunRecord | None


class Reaped(msgspec.Struct, frozen=True):
    """One thing that reap did."""

    key: RunKey
    session: str
    outcome: str  # requeued, or the state it ended in
    reason: Reason | None


class Page(msgspec.Struct, frozen=True):
    """A consistent part of a log, in seq order. `status` is OK, UNKNOWN or GONE."""

    status: Status
    events: list[bytes]
    epochs: list[int]  # of each event, for its id
    first: int  # seq of events[0]; after + 1 where there are none
    head: int
    epoch: int  # of the event at head; 0 where the log is empty
    state: State
    resync: bool = False  # `after` names an event this log never had: read from the start


class InputItem(msgspec.Struct, frozen=True):
    """A steered input that no agent has read yet."""

    n: int
    input: str


class SessionRecord(msgspec.Struct, frozen=True):
    """A session in a list."""

    session: str
    created_at: int
    updated_at: int
    active: RunRecord | None
    queued: int
    runs: int


class WorkerRecord(msgspec.Struct, frozen=True):
    """A worker as it last reported itself."""

    worker: str
    seen_at: int
    facts: dict[str, Any]


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

        Order of checks: idempotency key, run id, policy, admission. supersede flags the active run and ends all
        queued ones in the same step. The log begins with run.created.
        """
        ...

    async def claim(self, worker: str, n: int, lease_ms: int) -> list[Claim]:
        """Hand out at most `n` ready runs: round robin between tenants, first come first served within one."""
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

    async def resume(self, key: RunKey, decisions: Sequence[dict[str, Any]]) -> Appended:
        """Append run.resumed with `decisions` to a waiting run and make it ready again, epoch + 1."""
        ...

    async def release(self, key: RunKey, fence: Fence) -> Appended:
        """Give a run back to the front of the queue, epoch + 1; a flagged run ends cancelled instead."""
        ...

    async def request_stop(self, key: RunKey, reason: Reason, by: str) -> Stopped:
        """Set the durable stop flag, first reason kept; a queued or waiting run ends in this very step."""
        ...

    async def steer(self, key: RunKey, text: str, idempotency_key: str = "") -> Status:
        """Put an input into the inbox of a run that has not ended: OK, ENDED, UNKNOWN or GONE."""
        ...

    async def inbox(self, key: RunKey) -> list[InputItem]:
        """The unread steered inputs, in order."""
        ...

    async def edit_input(self, key: RunKey, text: str) -> Status:
        """Replace the input of a queued run that no worker ever began: OK, ENDED (begun or over), UNKNOWN."""
        ...

    async def reap(self, limit: int, grace_ms: int) -> list[Reaped]:
        """Requeue or end what is due: leases, deadlines, queue timeouts, stops unanswered for `grace_ms`.

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
        """Wakes of `topic`: "ready" (work to claim), "control" (stops, inboxes), `run_topic(key)`, `list_topic`."""
        ...

    def heart(self) -> Heart:
        """A connection for one heartbeat thread."""
        ...

    async def close(self) -> None:
        """Finish what is queued, then let go of everything; bounded."""
        ...


READY_TOPIC = "ready"
CONTROL_TOPIC = "control"


def run_topic(key: RunKey) -> str:
    """The topic of one run's log."""
    return f"run:{key.tenant}/{key.run}"


def list_topic(tenant: str) -> str:
    """The topic of state changes of a tenant's runs."""
    return f"list:{tenant}"

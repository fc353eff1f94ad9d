"""What goes into the store and what comes out of it: values, all frozen.

Times: `*_ms` durations in milliseconds; `*_at` are wall milliseconds since 1970.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.domain.messages import ClientTool, HistoryEntry, Message
from holdfast.domain.runs import Policy, Reason, State


class Status(StrEnum):
    """What the store answers."""

    OK = "ok"
    EXISTS = "exists"  # create: this id or idempotency key with this body made a run already
    CONFLICT = "conflict"  # create: this idempotency key or id with another body
    BUSY = "busy"  # create: policy reject, or too many queued behind; steer: too many unread
    MOVED = "moved"  # create: the run that it follows is not the last of the session any more
    OVERLOADED = "overloaded"  # create: a cap is reached, see `Created.shed`
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
    retracts: bool = True  # whether its first reader can take back text that it has shown
    build: str = ""  # of the gateway that took it
    config: str = ""  # fingerprint of that gateway's settings
    remember: bool = False  # `context` is part of the session: later runs of it are given it, too
    tools: list[ClientTool] = []  # of the client's own: calls of them end the run, and its next request has the results
    request: dict[str, Any] = {}  # what the protocol that asked repeats in its answers

    @property
    def before(self) -> list[Message]:
        """What the session keeps of `context`."""
        return self.context if self.remember else []


class Cap(StrEnum):
    """What a create may run into; each is the setting of that name."""

    RUNS_ACTIVE = "runs_active"
    RUNS_QUEUED = "runs_queued"
    TENANT_RUNS_ACTIVE = "tenant_runs_active"
    TENANT_RUNS_QUEUED = "tenant_runs_queued"

    @property
    def of_tenant(self) -> bool:
        """Whether it counts the runs of one tenant."""
        return self in (Cap.TENANT_RUNS_ACTIVE, Cap.TENANT_RUNS_QUEUED)


class Limits(msgspec.Struct, frozen=True):
    """The bounds that a create is judged and timed by. 0 is no cap, but for `runs_active_max`."""

    deadline_ms: int = 600_000
    queue_timeout_ms: int = 30_000
    session_wait_ms: int = 3_600_000
    queued_behind_max: int = 16
    runs_active_max: int = 1000
    attempts_max: int = 1
    runs_queued_max: int = 0
    tenant_active_max: int = 0
    tenant_queued_max: int = 0


class RunningCaps(msgspec.Struct, frozen=True):
    """How many runs may be running at once, judged by claim; 0 is no cap."""

    deployment: int = 0
    tenant: int = 0


UNCAPPED: Final = RunningCaps()


class NewRun(msgspec.Struct, frozen=True):
    """A create. `key.run` is chosen by the caller and makes the call repeatable."""

    key: RunKey
    session: str
    spec: RunSpec
    policy: Policy = Policy.SUPERSEDE
    idempotency_key: str = ""
    body_hash: str = ""
    limits: Limits = Limits()
    follows: str = ""  # a run that must be the last of the session, where that matters
    listener_ms: int = 0  # over 0: it is stopped unless `listen` is called for it at least this often


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
    ttft_ms: int | None = None  # from creation to the first content, known once it has ended


class Shed(msgspec.Struct, frozen=True):
    """Why a create was refused, and how fast what the cap counts has been ending of late."""

    cap: Cap
    limit: int
    found: int  # how many there are
    ends: int  # runs that ended in the last `ends_ms`, of the tenant where the cap is one of a tenant
    ends_ms: int  # at most a minute; where none ended in it, how long the oldest that is unfinished has been there


class Created(msgspec.Struct, frozen=True):
    """The answer to create. `record` is the run of this call, or with BUSY / STEERED the active one."""

    status: Status
    record: RunRecord | None
    superseded: list[str] = []
    shed: Shed | None = None  # with OVERLOADED


class Ended(msgspec.Struct, frozen=True):
    """How a run ended that did not end by its own worker's word, as its log lines tell it."""

    key: RunKey
    session: str
    trace: str
    state: State
    reason: Reason
    by: str
    cut_off: bool  # it was running, and had not left by itself
    created_at: int
    ended_at: int


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
    before: list[Ended] = []  # ends in its session that nobody has told: the claimer does, before it begins


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
    ends: list[Ended] = []  # for the caller to tell; release only


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
    ttft_ms: int | None = None
    leave_inbox: bool = False  # unread steered input becomes one queued run instead of PENDING_INPUT


class Stopped(msgspec.Struct, frozen=True):
    """The answer to request_stop: OK (flagged or ended now), ENDED before, UNKNOWN or GONE."""

    status: Status
    record: RunRecord | None
    ends: list[Ended] = []  # for the caller to tell


class Reaped(msgspec.Struct, frozen=True):
    """One thing that reap did."""

    key: RunKey
    session: str
    outcome: str  # requeued, stopping, or the state it ended in
    reason: Reason | None
    ends: list[Ended] = []  # for the caller to tell


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


class Glance(msgspec.Struct, frozen=True):
    """How a run stands, at the price of a glance: enough to see whether its record is worth another look."""

    run: str
    number: int  # in order of creation
    mark: str  # another one where the record changed in what lists show of it; opaque


class Roster(msgspec.Struct, frozen=True):
    """How a tenant's runs stand; `upto` is the number after which the next look goes on."""

    glances: list[Glance]
    upto: int


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

"""The life of a run, as one table.

    queued -> running -> completed | failed | cancelled
               |  ^
               v  |
             waiting

`stopping` is running with the stop flag set: a durable flag, first reason kept, that never expires. Queued and
waiting runs never carry it, because a stop ends them in the very step that asks. Every pair of phase and
trigger is decided in `TABLE`; what is not a move is a refusal with the word the store answers. docs/lifecycle.md
draws its diagram from this table, and a test compares them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class State(StrEnum):
    """A run's state, as its record shows it."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether the run has ended; nothing is ever written after it."""
        return self in _TERMINAL


_TERMINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED})


class Reason(StrEnum):
    """Why a run ended."""

    FINISHED = "finished"
    AGENT_ERROR = "agent_error"
    MODEL_ERROR = "model_error"
    MODEL_STALLED = "model_stalled"
    TOOL_ERROR = "tool_error"
    DEADLINE = "deadline"
    BUDGET = "budget"
    WORKER_LOST = "worker_lost"
    QUEUE_TIMEOUT = "queue_timeout"
    STORE_ERROR = "store_error"
    STOPPED = "stopped"
    SUPERSEDED = "superseded"
    CLIENT_DISCONNECT = "client_disconnect"
    SHUTDOWN = "shutdown"


REASONS: Final[dict[State, frozenset[Reason]]] = {
    State.COMPLETED: frozenset({Reason.FINISHED}),
    State.FAILED: frozenset(
        {
            Reason.AGENT_ERROR,
            Reason.MODEL_ERROR,
            Reason.MODEL_STALLED,
            Reason.TOOL_ERROR,
            Reason.DEADLINE,
            Reason.BUDGET,
            Reason.WORKER_LOST,
            Reason.QUEUE_TIMEOUT,
            Reason.STORE_ERROR,
        }
    ),
    State.CANCELLED: frozenset({Reason.STOPPED, Reason.SUPERSEDED, Reason.CLIENT_DISCONNECT, Reason.SHUTDOWN}),
}


class Policy(StrEnum):
    """What a prompt does to a session that is busy."""

    SUPERSEDE = "supersede"
    ENQUEUE = "enqueue"
    REJECT = "reject"
    STEER = "steer"


class OnDisconnect(StrEnum):
    """What happens to a run when the request that created it goes away."""

    CONTINUE = "continue"
    CANCEL = "cancel"


class Phase(StrEnum):
    """A state, with the stop flag told apart: the rows of the table."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    WAITING = "waiting"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def state(self) -> State:
        """The state that the record shows for this phase."""
        return State.RUNNING if self is Phase.STOPPING else State(self.value)


class Trigger(StrEnum):
    """What can happen to a run: the columns of the table."""

    CLAIM = "claim"
    APPEND = "append"
    PARK = "park"
    RESUME = "resume"
    RELEASE = "release"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    STOP = "stop"
    LEASE_LOST = "lease_lost"
    ATTEMPTS_SPENT = "attempts_spent"
    TIME_UP = "time_up"
    STOP_UNANSWERED = "stop_unanswered"


class Refusal(StrEnum):
    """Why a trigger does not move a run: the store's answer."""

    FENCED = "fenced"  # the caller does not hold the run (any more)
    STOP = "stop"  # it does, but the run was told to stop: finish it cancelled
    ENDED = "ended"  # the run has its terminal event
    NOT_DUE = "not_due"  # a timer that does not run in this phase


class Move(NamedTuple):
    """A trigger that is carried out: the phase after it."""

    to: Phase


_Q, _R, _S, _W = Phase.QUEUED, Phase.RUNNING, Phase.STOPPING, Phase.WAITING
_DONE, _FAIL, _CANC = Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED
_fenced, _stop, _ended, _not_due = (
    Refusal.FENCED,
    Refusal.STOP,
    Refusal.ENDED,
    Refusal.NOT_DUE,
)
_over: dict[Trigger, Move | Refusal] = {
    Trigger.CLAIM: _ended,
    Trigger.APPEND: _fenced,
    Trigger.PARK: _fenced,
    Trigger.RESUME: _ended,
    Trigger.RELEASE: _fenced,
    Trigger.COMPLETE: _fenced,
    Trigger.FAIL: _fenced,
    Trigger.CANCEL: _fenced,
    Trigger.STOP: _ended,
    Trigger.LEASE_LOST: _ended,
    Trigger.ATTEMPTS_SPENT: _ended,
    Trigger.TIME_UP: _ended,
    Trigger.STOP_UNANSWERED: _ended,
}

TABLE: Final[dict[Phase, dict[Trigger, Move | Refusal]]] = {
    Phase.QUEUED: {
        Trigger.CLAIM: Move(_R),
        Trigger.APPEND: _fenced,
        Trigger.PARK: _fenced,
        Trigger.RESUME: _not_due,
        Trigger.RELEASE: _fenced,
        Trigger.COMPLETE: _fenced,
        Trigger.FAIL: _fenced,
        Trigger.CANCEL: _fenced,
        Trigger.STOP: Move(_CANC),
        Trigger.LEASE_LOST: _not_due,
        Trigger.ATTEMPTS_SPENT: _not_due,
        Trigger.TIME_UP: Move(_FAIL),
        Trigger.STOP_UNANSWERED: _not_due,
    },
    Phase.RUNNING: {
        Trigger.CLAIM: _not_due,
        Trigger.APPEND: Move(_R),
        Trigger.PARK: Move(_W),
        Trigger.RESUME: _not_due,
        Trigger.RELEASE: Move(_Q),
        Trigger.COMPLETE: Move(_DONE),
        Trigger.FAIL: Move(_FAIL),
        Trigger.CANCEL: Move(_CANC),
        Trigger.STOP: Move(_S),
        Trigger.LEASE_LOST: Move(_Q),
        Trigger.ATTEMPTS_SPENT: Move(_FAIL),
        Trigger.TIME_UP: Move(_FAIL),
        Trigger.STOP_UNANSWERED: _not_due,
    },
    Phase.STOPPING: {
        Trigger.CLAIM: _not_due,
        Trigger.APPEND: Move(_S),
        Trigger.PARK: _stop,
        Trigger.RESUME: _stop,
        Trigger.RELEASE: Move(_CANC),
        Trigger.COMPLETE: _stop,
        Trigger.FAIL: _stop,
        Trigger.CANCEL: Move(_CANC),
        Trigger.STOP: Move(_S),
        Trigger.LEASE_LOST: Move(_CANC),
        Trigger.ATTEMPTS_SPENT: Move(_CANC),
        Trigger.TIME_UP: Move(_CANC),
        Trigger.STOP_UNANSWERED: Move(_CANC),
    },
    Phase.WAITING: {
        Trigger.CLAIM: _not_due,
        Trigger.APPEND: _fenced,
        Trigger.PARK: _fenced,
        Trigger.RESUME: Move(_Q),
        Trigger.RELEASE: _fenced,
        Trigger.COMPLETE: _fenced,
        Trigger.FAIL: _fenced,
        Trigger.CANCEL: _fenced,
        Trigger.STOP: Move(_CANC),
        Trigger.LEASE_LOST: _not_due,
        Trigger.ATTEMPTS_SPENT: _not_due,
        Trigger.TIME_UP: Move(_FAIL),
        Trigger.STOP_UNANSWERED: _not_due,
    },
    Phase.COMPLETED: _over,
    Phase.FAILED: _over,
    Phase.CANCELLED: _over,
}


def phase_of(state: State, *, stopping: bool) -> Phase:
    """The table's row for a run's state and stop flag."""
    return Phase.STOPPING if stopping and state is State.RUNNING else Phase(state.value)


def decide(phase: Phase, trigger: Trigger) -> Move | Refusal:
    """What `trigger` does to a run in `phase`."""
    return TABLE[phase][trigger]

"""A reference model of the store for random walks: the rules of DESIGN, as plain as they can be said.

It knows no time, no order between sessions and no bytes; what it does know, a store must agree with after
every step. Each method predicts the store's answer and takes the effect.
"""

from __future__ import annotations

import dataclasses

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Fence, Status


@dataclasses.dataclass
class ModelRun:
    """What the model knows of one run."""

    key: RunKey
    session: str
    state: State = State.QUEUED
    reason: Reason | None = None
    stopping: Reason | None = None
    fence: Fence | None = None
    begun: bool = False  # the current claim wrote run.started
    attempts: int = 0  # claims that began and were lost
    unread: int = 0
    ended_by: Fence | None = None


class Model:
    """Sessions as queues; the first of each holds the slot."""

    def __init__(self, queued_behind_max: int, attempts_max: int) -> None:
        """Begin empty; the limits are those of every run."""
        self._attempts_max = attempts_max
        self.runs: dict[RunKey, ModelRun] = {}
        self.queues: dict[str, list[RunKey]] = {}
        self.left_over: list[str] = []  # sessions in which unread input must become a run
        self._behind_max = queued_behind_max

    def create(self, key: RunKey, session: str, policy: Policy) -> Status:
        """A create with a fresh id."""
        queue = self.queues.setdefault(session, [])
        if queue and policy is Policy.REJECT:
            return Status.BUSY
        if queue and policy is Policy.STEER:
            return Status.STEERED if self.steer(queue[0]) is Status.OK else Status.BUSY
        if policy is Policy.SUPERSEDE:
            for other in list(queue):
                self.stop(other, Reason.SUPERSEDED)
        elif len(queue) > self._behind_max:
            return Status.BUSY
        self.adopt(ModelRun(key, session))
        return Status.OK

    def adopt(self, run: ModelRun, place: int | None = None) -> None:
        """Take a run into its session's queue, at the end or at `place`."""
        self.runs[run.key] = run
        queue = self.queues.setdefault(run.session, [])
        queue.insert(len(queue) if place is None else place, run.key)

    def ready(self) -> set[RunKey]:
        """What a claim may hand out."""
        heads = (queue[0] for queue in self.queues.values() if queue)
        return {key for key in heads if self.runs[key].state is State.QUEUED}

    def claim(self, key: RunKey, fence: Fence) -> None:
        """`key` was handed out."""
        run = self.runs[key]
        run.state, run.fence, run.begun = State.RUNNING, fence, False

    def holds(self, key: RunKey, fence: Fence) -> bool:
        """The fence: epoch, token and state."""
        run = self.runs[key]
        return run.state is State.RUNNING and run.fence == fence

    def start(self, key: RunKey, fence: Fence) -> Status:
        """An append of run.started."""
        if not self.holds(key, fence):
            return Status.FENCED
        self.runs[key].begun = True
        return Status.OK

    def append(self, key: RunKey, fence: Fence) -> Status:
        """An append of anything else."""
        return Status.OK if self.holds(key, fence) else Status.FENCED

    def finish(self, key: RunKey, fence: Fence, state: State, reason: Reason, *, leave_inbox: bool) -> Status:
        """A finish at the true head."""
        run = self.runs[key]
        if run.ended_by == fence:
            return Status.DUP
        if not self.holds(key, fence):
            return Status.FENCED
        if run.stopping is not None and state is not State.CANCELLED:
            return Status.STOP
        if run.unread and state is State.COMPLETED and not leave_inbox:
            return Status.PENDING_INPUT
        run.ended_by = fence
        self.end(key, state, reason)
        return Status.OK

    def park(self, key: RunKey, fence: Fence) -> Status:
        """A park at the true head."""
        if not self.holds(key, fence):
            return Status.FENCED
        run = self.runs[key]
        if run.stopping is not None:
            return Status.STOP
        run.state, run.fence = State.WAITING, None
        return Status.OK

    def resume(self, key: RunKey) -> bool:
        """Whether a decision is taken."""
        run = self.runs[key]
        if run.state is not State.WAITING:
            return False
        run.state = State.QUEUED
        return True

    def release(self, key: RunKey, fence: Fence) -> Status:
        """A release."""
        if not self.holds(key, fence):
            return Status.FENCED
        self._give_back(self.runs[key])
        return Status.OK

    def stop(self, key: RunKey, reason: Reason) -> Status:
        """A request_stop."""
        run = self.runs[key]
        if run.state.terminal:
            return Status.ENDED
        if run.state is State.RUNNING:
            run.stopping = run.stopping or reason
        else:
            self.end(key, State.CANCELLED, reason)
        return Status.OK

    def steer(self, key: RunKey) -> Status:
        """A steer."""
        run = self.runs[key]
        if run.state.terminal:
            return Status.ENDED
        if run.unread >= self._behind_max:
            return Status.BUSY
        run.unread += 1
        return Status.OK

    def lose_workers(self) -> set[RunKey]:
        """Every lease is lost and reaped; the runs that this touched."""
        touched = {key for key, run in self.runs.items() if run.state is State.RUNNING}
        for key in touched:
            run = self.runs[key]
            run.attempts += run.begun
            if run.stopping is None and run.attempts >= self._attempts_max:
                self.end(key, State.FAILED, Reason.WORKER_LOST)
            else:
                self._give_back(run)
        return touched

    def let_grace_pass(self) -> set[RunKey]:
        """Every unanswered stop is reaped; the runs that this ended."""
        touched = {k for k, r in self.runs.items() if r.state is State.RUNNING and r.stopping is not None}
        for key in touched:
            self._give_back(self.runs[key])
        return touched

    def end(self, key: RunKey, state: State, reason: Reason) -> None:
        """Ending removes a run everywhere, and promotes by doing so."""
        run = self.runs[key]
        run.state, run.reason, run.fence = state, reason, None
        self.queues[run.session].remove(key)
        if run.unread:
            self.left_over.append(run.session)
        run.unread = 0

    def _give_back(self, run: ModelRun) -> None:
        if run.stopping is not None:
            self.end(run.key, State.CANCELLED, run.stopping)
        else:
            run.state, run.fence = State.QUEUED, None

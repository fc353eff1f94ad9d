"""The agent: what runs under Holdfast's promises, in one method.

Contract: cancellation is task cancellation and must pass through; a run yields exactly one `Result` as its last
item, or raises. Checkpoints are opaque bytes that `run` accepts to resume. Deadlines, watchdogs, grace and
abandonment belong to the runtime, not to the agent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any, Final, Literal, Protocol

import msgspec

from holdfast.domain.ids import RunKey
from holdfast.domain.messages import ClientTool, HistoryEntry
from holdfast.ports.probe import Probe


class TextDelta(msgspec.Struct, frozen=True):
    """More text of a part; parts are numbered by the agent from `RunContext.first_part` on."""

    part: int
    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """More reasoning of a part."""

    part: int
    text: str


class PartDone(msgspec.Struct, frozen=True):
    """A part is whole; the runtime writes text.done or reasoning.done with all of it."""

    part: int


class ToolArgs(msgspec.Struct, frozen=True):
    """More of a call's arguments, while the model still writes them."""

    call: str
    name: str
    delta: str


class ToolCalled(msgspec.Struct, frozen=True):
    """The model asked for a tool. Durable, with the checkpoint that follows, before the tool starts."""

    call: str
    name: str
    args: Any


class ToolProgress(msgspec.Struct, frozen=True):
    """Output of a tool that still runs; the texts of one call, joined as they are, are what it said."""

    call: str
    text: str
    truncated: bool = False  # more was said than is told
    bytes: int = 0  # how much was said in all, where that is more


class ToolFinished(msgspec.Struct, frozen=True):
    """A tool ended; with its checkpoint one append."""

    call: str
    name: str
    outcome: str
    result: Any
    duration_ms: int
    checkpoint: bytes | None = None


class ToolAsks(msgspec.Struct, frozen=True):
    """An agent that a tool has called will ask a model: budgets and the lease are looked at, nothing is logged."""

    call: str
    model: str


class ToolResponded(msgspec.Struct, frozen=True):
    """A model has answered an agent that a tool has called; its usage is the run's."""

    call: str
    model: str
    finish_reason: str | None
    usage: dict[str, Any]
    duration_ms: int


class ModelRequested(msgspec.Struct, frozen=True):
    """A model request begins."""

    step: int
    model: str
    attempt: int


class ModelResponded(msgspec.Struct, frozen=True):
    """A model response is whole."""

    step: int
    model: str
    finish_reason: str | None
    usage: dict[str, Any]
    ttft_ms: int | None
    duration_ms: int


class ModelRetried(msgspec.Struct, frozen=True):
    """A model request failed before its first content and is repeated after `wait_ms`."""

    step: int
    attempt: int
    reason: str
    wait_ms: int


class AttemptDiscarded(msgspec.Struct, frozen=True):
    """Readers drop these parts and calls; what follows replaces them."""

    step: int
    reason: str
    parts: list[int]
    calls: list[str]


class Degraded(msgspec.Struct, frozen=True):
    """Something works less well than it should, and the run goes on."""

    what: str
    why: str


class Checkpoint(msgspec.Struct, frozen=True):
    """The run can go on from here after a crash. Durable, with all before it, before the agent goes on."""

    data: bytes


class Result(msgspec.Struct, frozen=True):
    """The run's answer. `native` is the adapter's form of the run's messages, for the session's history.

    `handed` are calls that were handed over to the client: they have no tool.finished, and their results come with
    its next request.
    """

    output: str
    native: bytes = b""
    handed: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True):
    """A call that somebody outside decides about.

    `kind` is approval (may it run) or call (it runs elsewhere, and its result is awaited).
    """

    call: str
    name: str
    args: Any
    kind: Literal["approval", "call"] = "approval"
    metadata: dict[str, Any] = {}  # what the tool says beside it, for who decides


class Waiting(msgspec.Struct, frozen=True):
    """The run cannot go on before these are decided: it is parked, and nothing after this is read.

    The agent is run again with `checkpoint` once they are, and `RunContext.decisions` then has one for each.
    """

    requests: list[Request]
    checkpoint: bytes = b""


class Steered(msgspec.Struct, frozen=True):
    """An input of `RunContext.inbox` was read; with its checkpoint one append, so that it is read once."""

    n: int
    input: str
    checkpoint: bytes | None = None


class Unread(Protocol):
    """A steered input: its number in the run's inbox, and its text."""

    @property
    def n(self) -> int:
        """From 1."""
        ...

    @property
    def input(self) -> str:
        """What the user wrote."""
        ...


async def _nothing() -> Sequence[Unread]:
    return ()


AgentEvent = (
    TextDelta
    | ReasoningDelta
    | PartDone
    | ToolArgs
    | ToolCalled
    | ToolProgress
    | ToolFinished
    | ToolAsks
    | ToolResponded
    | ModelRequested
    | ModelResponded
    | ModelRetried
    | AttemptDiscarded
    | Degraded
    | Checkpoint
    | Waiting
    | Steered
    | Result
)


class RunContext:
    """What an agent is given. One instance a run and attempt; `recovered` and `leftover` are written by the agent."""

    def __init__(
        self,
        *,
        key: RunKey,
        session: str,
        attempt: int,
        epoch: int,
        input: str,
        history: list[HistoryEntry],
        checkpoint: bytes | None,
        first_part: int,
        deadline: float,
        model: str,
        settings: dict[str, Any],
        instructions: str,
        metadata: dict[str, Any],
        probe: Probe,
        retracts: bool = True,
        decisions: list[dict[str, Any]] | None = None,
        inbox: Callable[[], Awaitable[Sequence[Unread]]] = _nothing,
        tools: Sequence[ClientTool] = (),
        calls: Collection[str] = (),
    ) -> None:
        """Hold the values as they are.

        Args:
            key: Tenant and run.
            session: The session's id.
            attempt: From 1; above 1 the run is resumed.
            epoch: The fencing number, for tools that want to tell attempts apart.
            input: The user's message; "" where the history ends with results of the client's tools.
            history: What earlier runs of the session left, oldest first.
            checkpoint: The last one this agent yielded, or None.
            first_part: The first free part number.
            deadline: On the running loop's clock (`loop.time()`), in seconds.
            model: The model asked for, or "".
            settings: Sampling fields for the model.
            instructions: A system message that holds for this run only, or "".
            metadata: The caller's own values.
            probe: Where models and tools say what they are doing.
            retracts: Whether the run's first reader can take back text that it has shown.
            decisions: The last ones that the run waited for: `call`, `approve`, and `args`, `message` or `result`.
            tools: Of the client's own: a call of one ends the run, and is named in `Result.handed`.
            calls: The calls that earlier attempts named; a new call needs a name that is not among them.
            inbox: Reads the steered inputs that no `Steered` has told of yet, in order.
        """
        self.decisions = decisions or []
        self.inbox = inbox
        self.tools = list(tools)
        self.calls = frozenset(calls)
        self.retracts = retracts
        self.key = key
        self.session = session
        self.attempt = attempt
        self.epoch = epoch
        self.input = input
        self.history = history
        self.checkpoint = checkpoint
        self.first_part = first_part
        self.deadline = deadline
        self.model = model
        self.settings = settings
        self.instructions = instructions
        self.metadata = metadata
        self.probe = probe
        self.recovered: bytes = b""  # native messages of a run that was cancelled or failed, if the agent has them
        self.leftover: list[AgentEvent] = []  # what had happened by then and was not yet yielded, in order


class Agent(Protocol):
    """Anything that can answer a prompt."""

    name: str
    kind: str  # of its native history, such as "pydantic-ai"; "" where it has none
    resumable: bool  # whether it yields checkpoints

    def run(self, ctx: RunContext) -> AsyncIterator[AgentEvent]:
        """Work on `ctx.input` and yield what happens."""
        ...


SERVED: Final = "served"  # the fact under which a worker reports its agents to the store


class AgentInfo(msgspec.Struct, frozen=True):
    """A served agent, as gateways know it."""

    name: str
    kind: str
    model: str
    resumable: bool
    rehearsal: bool = False

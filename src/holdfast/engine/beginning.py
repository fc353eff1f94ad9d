"""What a claim begins with: the fold of the log that is there, the session's history, the agent's context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from holdfast.domain.digest import Digest
from holdfast.domain.events import decode_event
from holdfast.domain.messages import HistoryEntry, Message
from holdfast.domain.runs import State
from holdfast.engine.appender import Lost
from holdfast.ports.agent import RunContext
from holdfast.ports.probe import Probe
from holdfast.ports.store import Claim, InputItem, RunStore, Status

_READ_PAGE: Final = 500

Repeat = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]  # an operation, until its outcome is known


async def read_log(store: RunStore, claim: Claim, repeat: Repeat) -> tuple[Digest, Digest]:
    """The fold of what is there, and of what came after the last checkpoint.

    Raises:
        Lost: The store has less than it said.
    """
    fold, since, after = Digest(), Digest(), 0
    while after < claim.base:
        page = await repeat(partial(store.read, claim.key, after, _READ_PAGE))
        if not page.events:
            raise Lost(Status.GAP)
        for data in page.events:
            after += 1
            event = decode_event(data)
            fold.feed(event["type"], event)
            if after > claim.checkpoint_seq:
                since.feed(event["type"], event)
    return fold, since


async def read_history(store: RunStore, claim: Claim, repeat: Repeat) -> list[HistoryEntry]:
    """What earlier runs of the session left, and what its client says was said before."""
    entries: list[HistoryEntry] = []
    for entry in await repeat(partial(store.history, claim.key.tenant, claim.session)):
        entries += [*_said(entry.before), entry]
    return [*entries, *_said(claim.spec.context)]


def _said(messages: list[Message]) -> list[HistoryEntry]:
    return [HistoryEntry(run="", state=State.COMPLETED, messages=messages)] if messages else []


def context_of(
    claim: Claim,
    history: list[HistoryEntry],
    fold: Digest,
    deadline: float,
    probe: Probe,
    inbox: Callable[[], Awaitable[Sequence[InputItem]]],
) -> RunContext:
    """What the agent is given."""
    return RunContext(
        key=claim.key,
        session=claim.session,
        attempt=claim.attempt,
        epoch=claim.fence.epoch,
        input=claim.spec.input,
        history=history,
        checkpoint=claim.checkpoint,
        first_part=fold.next_part(),
        calls=fold.names(),
        deadline=deadline,
        model=claim.spec.model,
        settings=claim.spec.settings,
        instructions=claim.spec.instructions,
        metadata=claim.spec.metadata,
        probe=probe,
        retracts=claim.spec.retracts,
        decisions=claim.decisions,
        inbox=inbox,
        tools=claim.spec.tools,
    )

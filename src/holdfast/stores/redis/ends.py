"""Steps that end runs: asked, composed, and asked again until the composition fits.

A script that has an end to write and no composition that fits the run as it is (same epoch, head, inbox, reason)
changes nothing and answers `compose`. What is composed is a pure function of the log, so the step stays one atomic
script: read, fold outside, then one conditional write. A log that grows meanwhile is folded from where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from holdfast.domain.digest import Digest
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.events import EventType, decode_event, encode_event
from holdfast.domain.ids import new_run_id
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import RunSpec
from holdfast.stores.composing import created_fields, derived_entry, end_from_outside, follow_up, result_of
from holdfast.stores.redis.link import Argument, Link
from holdfast.stores.redis.rows import spec_of

_TRIES_MAX: Final = 300  # each failed try is a step of somebody else that went through
_PAGE: Final = 500


class Wanted(msgspec.Struct, frozen=True):
    """An end that a script asks to be composed; as `want` in scripts/lib/ends.lua."""

    uid: str
    tenant: str
    run: str
    session: str
    epoch: int
    head: int
    inbox_n: int
    state: State
    reason: Reason
    by: str
    killed: bool
    cut_off: bool
    wall: int
    stop_at: int | None
    spec: RunSpec
    checkpoint: bytes | None
    checkpoint_seq: int
    inputs: list[str]
    events: list[bytes]  # of a short log


class _Folded:
    """One log as far as it was read."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.digest = Digest()

    def feed(self, encoded: Sequence[bytes]) -> None:
        for data in encoded:
            event = decode_event(data)
            self.events.append(event)
            self.digest.feed(event["type"], event)


class Ends:
    """Composes what scripts ask for."""

    def __init__(self, link: Link) -> None:
        """Call through `link`."""
        self._link = link

    async def step(self, verb: str, *arguments: Argument, more: Sequence[bytes] | None = None) -> Any:
        """Carry out `verb`, with compositions where it asks for them; its reply.

        Args:
            verb: The script.
            arguments: What it takes before the compositions.
            more: Events that the step itself writes before it ends the run, for the derived history.

        Raises:
            StoreUnavailable: The outcome is unknown, or others were faster too often.
        """
        composed: list[Argument] = []
        folds: dict[str, _Folded] = {}
        for _ in range(_TRIES_MAX):
            reply = await self._link.call(verb, *arguments, *composed)
            if not isinstance(reply, list) or not reply or reply[0] != b"compose":
                return reply
            composed = []
            for each in reply[1]:
                wanted = _wanted(each)
                fold = folds.setdefault(wanted.uid, _Folded())
                await self._fold(wanted, fold)
                composed += _composition(wanted, fold, more)
        raise StoreUnavailable(f"{verb}: the runs changed {_TRIES_MAX} times while their end was composed; repeat it")

    async def _fold(self, wanted: Wanted, fold: _Folded) -> None:
        """Read the log up to the head that the end is for."""
        if wanted.events:
            fold.feed(wanted.events[len(fold.events) :])
        key = f"{self._link.address.prefix}log:{wanted.uid}"
        while len(fold.events) < wanted.head:
            entries = await self._link.command("XRANGE", key, len(fold.events) + 1, "+", "COUNT", _PAGE)
            if not entries:
                return  # the store lost it: what there is counts
            fold.feed([fields[1] for _, fields in entries[: wanted.head - len(fold.events)]])


def _wanted(reply: list[Any]) -> Wanted:
    (uid, tenant, run, session, epoch, head, inbox_n, state, reason, by, killed, cut_off, *large) = reply
    wall, stop_at, spec, checkpoint, checkpoint_seq, inputs, events = large
    return Wanted(
        uid=uid.decode(),
        tenant=tenant.decode(),
        run=run.decode(),
        session=session.decode(),
        epoch=epoch,
        head=head,
        inbox_n=inbox_n,
        state=State(state.decode()),
        reason=Reason(reason.decode()),
        by=by.decode(),
        killed=bool(killed),
        cut_off=bool(cut_off),
        wall=wall,
        stop_at=stop_at,
        spec=spec_of(spec),
        checkpoint=checkpoint,
        checkpoint_seq=int(checkpoint_seq or 0),
        inputs=[text.decode() for text in inputs],
        events=events,
    )


def _composition(wanted: Wanted, fold: _Folded, more: Sequence[bytes] | None) -> list[Argument]:
    """What `take_composed` in scripts/lib/ends.lua takes for one run."""
    event, result = b"", b""
    if more is None:  # else its worker ends it, and has both
        last, ending = end_from_outside(
            fold.digest,
            wanted.state,
            wanted.reason,
            wanted.by,
            asked_at=wanted.stop_at or wanted.wall,
            wall=wanted.wall,
            killed=wanted.killed,
            cut_off=wanted.cut_off,
        )
        event = b"\n".join(  # none of them has a line feed of its own
            encode_event(seq, wanted.run, kind, wanted.wall, fields)
            for seq, (kind, fields) in enumerate(last, wanted.head + 1)
        )
        result = msgspec.json.encode(result_of(ending))
    own = [decode_event(data) for data in more or ()]
    digest = Digest([*fold.events, *own]) if own else fold.digest
    tail = None
    if wanted.checkpoint is not None and wanted.spec.kind:
        tail = Digest([*fold.events[wanted.checkpoint_seq :], *own])
    entry = derived_entry(wanted.run, wanted.spec, wanted.state, digest, wanted.checkpoint, tail)
    return [
        wanted.uid,
        wanted.epoch,
        wanted.head,
        wanted.inbox_n,
        wanted.state.value,
        wanted.reason.value,
        wanted.by,
        event,
        result,
        msgspec.json.encode(entry),
        *_follow_up(wanted),
    ]


def _follow_up(wanted: Wanted) -> tuple[str, bytes, bytes]:
    """The run that unread input becomes: id, spec, run.created; empty where there is none."""
    if not wanted.inputs:
        return "", b"", b""
    spec, run = follow_up(wanted.spec, wanted.inputs), new_run_id()
    fields = created_fields(wanted.session, spec, Policy.STEER)
    created = encode_event(1, run, EventType.RUN_CREATED, wanted.wall, fields)
    return run, msgspec.json.encode(spec), created

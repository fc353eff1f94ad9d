"""Sessions: what clients ask for, as store operations and errors of the catalogue. Holds no run state.

The gateway calls this and nothing below it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Protocol, cast

import msgspec

from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import SYNTHETIC_AGENT, SYNTHETIC_TENANT, RunKey, new_run_id, new_session_id, trace_id
from holdfast.domain.messages import ClientTool, HistoryEntry, Message
from holdfast.domain.runs import OnDisconnect, Policy, Reason, State
from holdfast.engine import refusals
from holdfast.engine.deciding import decide, open_calls
from holdfast.engine.lists import ListWatch
from holdfast.engine.reasons import inspection
from holdfast.engine.shedding import Shedding
from holdfast.engine.telling import tell_ends
from holdfast.ports.agent import AgentInfo
from holdfast.ports.store import (
    Created,
    Limits,
    NewRun,
    Page,
    RunRecord,
    RunSpec,
    RunStore,
    SessionRecord,
    Status,
    WorkerRecord,
    list_topic,
)
from holdfast.telemetry import Log
from holdfast.telemetry.totals import without_metrics

RETRY_AFTER_S = 1
_QUEUE_MAX: Final = 1000  # more than the setting `queued_behind` lets wait behind one run
_SYNTHETIC = AgentInfo(SYNTHETIC_AGENT, "", "", False)


class StartRequest(msgspec.Struct, frozen=True):
    """A prompt, checked for shape by the gateway."""

    input: str
    session: str = ""  # "" makes a new one
    follows: str = ""  # a run of the session: where it is not the last, a new session begins that is a copy up to it
    agent: str = ""  # "" is the first served
    on_busy: Policy = Policy.SUPERSEDE
    on_disconnect: str = "continue"
    deadline_s: float | None = None
    metadata: dict[str, Any] = {}
    instructions: str = ""
    settings: dict[str, Any] = {}
    protocol: str = "native"
    idempotency_key: str = ""
    trace: str = ""
    context: list[Message] = []
    retracts: bool = True  # whether who reads its answer can take back what was shown
    remember: bool = False  # later runs of the session are given `context`, too
    tools: list[ClientTool] = []  # of the client's own
    request: dict[str, Any] = {}  # what the protocol repeats in its answers
    listens: bool = False  # the request that makes it waits for its end, and nobody else is known to
    listener_s: float = 0.0  # for so long it may have no listener; 0: listener_lease_s


class SessionView(msgspec.Struct, frozen=True):
    """A session as one page: what was said, what runs, what waits."""

    record: SessionRecord
    history: list[HistoryEntry]
    active: RunRecord | None
    queue: list[RunRecord]


class Inspector(Protocol):
    """Whoever holds runs can say what they are doing."""

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """What a held run waits on; None where no worker here holds it. Bounded."""
        ...


class Sessions:
    """Commands and reads on runs and sessions of one tenant at a time."""

    def __init__(
        self,
        store: RunStore,
        settings: Settings,
        log: Log,
        agents: Callable[[], Sequence[AgentInfo]],
        inspector: Inspector | None = None,
        version: Mapping[str, str] | None = None,
    ) -> None:
        """Take the store, and where the served agents are looked up; `version` has build and config."""
        self._version = version or {}
        self._store = store
        self._settings = settings
        self._log = log
        self._agents = agents
        self._inspector = inspector
        self._shedding = Shedding(log, settings.retry_after_s)
        self._listener_ms = int(settings.listener_lease_s * 1000)
        self.draining = False  # set by the composition root: runs end, none begins
        self.missing = ""  # set by the composition root: what the start did not find, and no run could do without

    def agents(self) -> Sequence[AgentInfo]:
        """The served agents; the first is the default."""
        return self._agents()

    async def start(self, tenant: str, request: StartRequest) -> Created:
        """Store a prompt durably and make it a run.

        Returns:
            status OK (a new run), EXISTS (the run this idempotency key made) or STEERED (the active run).

        Raises:
            HoldfastError: unknown_agent, session_busy, idempotency_conflict, rate_limited (a cap of the tenant),
                overloaded (one of the deployment), store_unavailable.
        """
        if self.draining:
            raise HoldfastError("not_ready", "the server is shutting down", retry_after_s=RETRY_AFTER_S)
        synthetic = tenant == SYNTHETIC_TENANT
        if self.missing and not synthetic:  # a synthetic run needs no model
            raise HoldfastError("not_ready", self.missing, retry_after_s=RETRY_AFTER_S)
        agent = _SYNTHETIC if synthetic else self._agent(request.agent)
        key = RunKey(tenant, new_run_id())
        new = NewRun(
            key=key,
            session=request.session or new_session_id(),
            spec=_spec(request, agent, key, self._version),
            policy=request.on_busy,
            follows=request.follows,
            idempotency_key=request.idempotency_key,
            body_hash=_body_hash(request),
            limits=self._limits(request, agent),
            listener_ms=self._listener(request),
        )
        if not synthetic:
            self._log.write("stream_requested", trace=new.spec.trace, run=key.run, session=new.session)
        created = await self._store.create(new)
        if created.status is Status.MOVED:
            new = await self._forked(new)
            created = await self._store.create(new)
        return self._judge(created, new)

    async def get(self, key: RunKey) -> RunRecord:
        """The record, or unknown_run."""
        record = await self._store.get(key)
        if record is None:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)
        return record

    async def stop(self, key: RunKey, by: str, reason: Reason = Reason.STOPPED) -> RunRecord:
        """Ask a run to stop; idempotent. The record may show `stopping`, or the end."""
        answer = await self._store.request_stop(key, reason, by)
        if answer.record is None:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)
        tell_ends(self._log, answer.ends)  # it was queued or waiting: no worker does
        return answer.record

    async def listen(self, keys: Sequence[RunKey], lease_ms: int = 0) -> list[RunKey]:
        """Say that somebody listens to these runs, for `lease_ms` or listener_lease_s; those that need it again."""
        return await self._store.listen(keys, lease_ms or self._listener_ms)

    async def stop_session(self, tenant: str, session: str, by: str) -> RunRecord | None:
        """Stop what is active in a session; None where nothing is. Queued runs follow it, as they would.

        Where a prompt has just superseded what is active, that prompt is stopped: it is next, and what is meant.
        """
        await self.session(tenant, session)
        active = await self._store.active(tenant, session)
        if active is not None and active.stopping is Reason.SUPERSEDED:
            queued = await self._store.list_runs(tenant, session=session, state=State.QUEUED, limit=_QUEUE_MAX)
            active = await self._store.active(tenant, session)  # it, where it left the queue before we looked there
            active = next((each for each in queued if each.policy is Policy.SUPERSEDE), active)
        return None if active is None else await self.stop(active.key, by)

    async def edit_input(self, key: RunKey, text: str) -> RunRecord:
        """Replace the input of a run that is still queued, or already_ended."""
        status = await self._store.edit_input(key, text)
        if status is Status.ENDED:
            raise HoldfastError(
                "already_ended",
                f"run {key.run} is no longer queued",
                remedy="send a new prompt",
                run=key.run,
            )
        return await self.get(key)

    async def steer(self, key: RunKey, text: str, idempotency_key: str = "") -> RunRecord:
        """Hand an input to an active run; already_ended, idempotency_conflict, session_busy (too many unread)."""
        status = await self._store.steer(key, text, idempotency_key, unread_max=self._settings.queued_behind)
        if status is Status.BUSY:
            raise refusals.inbox_full(key.run, self._settings.queued_behind)
        if status is Status.CONFLICT:
            raise refusals.conflict(idempotency_key, key.run)
        if status is Status.ENDED:
            raise HoldfastError("already_ended", f"run {key.run} has ended", run=key.run)
        return await self.get(key)

    async def decide(self, key: RunKey, decisions: Sequence[dict[str, Any]], *, partly: bool = False) -> RunRecord:
        """Decide about what a waiting run asks; see `deciding`."""
        return await decide(self._store, key, decisions, partly=partly)

    async def open_calls(self, record: RunRecord) -> list[str]:
        """What a waiting run still waits for; see `deciding`."""
        return await open_calls(self._store, record)

    async def list_runs(
        self,
        tenant: str,
        session: str | None,
        state: State | None,
        limit: int,
        after: str,
    ) -> list[RunRecord]:
        """Newest first; unknown_run where `after` never was one of the tenant's: an empty page would say the end."""
        found = await self._store.list_runs(tenant, session=session, state=state, limit=limit, after=after)
        if after and not found:
            last = RunKey(tenant, after)
            if (await self._store.read(last, 0, 1)).status is Status.UNKNOWN:
                raise HoldfastError("unknown_run", f"after={after}: no such run", run=after)
        return found

    def follow_list(self, tenant: str) -> ListWatch:
        """All runs of a tenant as they change, whichever process changes them."""
        return ListWatch(self._store, tenant)

    async def list_sessions(self, tenant: str, limit: int, after: str) -> list[SessionRecord]:
        """Most recently used first; unknown_session where `after` is there no more: nor is its place."""
        if after:
            await self.session(tenant, after)
        return await self._store.list_sessions(tenant, limit=limit, after=after)

    async def session(self, tenant: str, session: str) -> SessionRecord:
        """The session's record, or unknown_session."""
        record = await self._store.get_session(tenant, session)
        if record is None:
            raise HoldfastError("unknown_session", f"no session {session}", session=session)
        return record

    async def view(self, tenant: str, session: str) -> SessionView:
        """A session with its history, its active run and its queue in order."""
        record = await self.session(tenant, session)
        queued = await self._store.list_runs(tenant, session=session, state=State.QUEUED, limit=_QUEUE_MAX)
        active = record.active.key.run if record.active else ""
        return SessionView(
            record=record,
            history=await self._store.history(tenant, session),
            active=record.active,
            queue=[r for r in reversed(queued) if r.key.run != active],
        )

    async def history(self, tenant: str, session: str) -> list[HistoryEntry]:
        """What the ended runs of a session left, in order; nothing where there is no such session."""
        return await self._store.history(tenant, session)

    async def handed(self, tenant: str, session: str) -> dict[str, str]:
        """The calls that ended runs of a session left to their client, answered by it or not: each with its tool."""
        left: dict[str, str] = {}
        for entry in await self._store.history(tenant, session):
            for message in entry.messages:
                left |= {call.call: call.name for call in message.calls}
                left.pop(message.call, None)
        return left

    async def forget(self, tenant: str, session: str, by: str) -> None:
        """Stop a session's runs and forget it, or unknown_session."""
        await self.session(tenant, session)
        await self._store.delete_session(tenant, session, by)

    async def forget_run(self, key: RunKey, by: str, limit_s: float) -> None:
        """Stop a run if it works, wait for its end, and forget it: its log, and what it left in its session."""
        record = await self.stop(key, by)
        if not record.state.terminal:
            record = await self.wait(key, limit_s)
        status = await self._store.forget(key)
        if status is Status.BUSY:
            raise HoldfastError("not_ready", f"run {key.run} was told to stop and has not ended", retry_after_s=1)
        if status is not Status.OK:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)

    async def read(self, key: RunKey, after: int, limit: int, epoch: int | None = None) -> Page:
        """A page of a log; unknown_run or gone are raised."""
        return self._served(key, await self._store.read(key, after, limit, epoch))

    async def tail(self, key: RunKey, after: int) -> AsyncGenerator[Page, None]:
        """Pages until the terminal event; ends on GONE too (the last page says so). Close it if you leave early."""
        pages = cast("AsyncGenerator[Page, None]", self._store.tail(key, after))
        async with aclosing(pages):  # else its subscription would live until the garbage collector comes
            async for page in pages:
                yield page

    async def wait(self, key: RunKey, limit_s: float) -> RunRecord:
        """The record once the run has ended, or as it is after `limit_s` seconds."""
        record = await self.get(key)
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        with self._store.subscribe(list_topic(key.tenant)) as wake:
            while not record.state.terminal and loop.time() < until:
                await wake.wait(min(1.0, until - loop.time()))
                record = await self.get(key)
        return record

    async def inspect(self, key: RunKey) -> dict[str, Any]:
        """Why a run is not finished: its timers, and what its worker says of it."""
        record = await self.get(key)
        held = await self._inspector.inspect(key) if self._inspector else None
        return await inspection(self._store, record, held)

    async def workers(self) -> list[WorkerRecord]:
        """The workers that reported in the last minute, with the facts that are for people."""
        found = await self.reports()
        return [msgspec.structs.replace(each, facts=without_metrics(each.facts)) for each in found]

    async def reports(self) -> list[WorkerRecord]:
        """The same with everything they reported, what they have counted included."""
        return await self._store.workers()

    async def health(self) -> dict[str, Any]:
        """The store's facts."""
        return await self._store.health()

    async def _forked(self, new: NewRun) -> NewRun:
        """The same prompt in a new session that begins with what `new.session` had after the run that it follows."""
        followed = await self.get(RunKey(new.key.tenant, new.follows))
        if not followed.state.terminal:
            raise HoldfastError(
                "invalid_request",
                f"run {new.follows} has not ended, and is not the last of its session",
                remedy="wait for its end, or continue the last run of the session",
                run=new.follows,
            )
        said: list[Message] = []
        for entry in await self._store.history(new.key.tenant, new.session):
            said += [*entry.before, *entry.messages]
            if entry.run == new.follows:
                spec = msgspec.structs.replace(new.spec, context=[*said, *new.spec.context])
                return msgspec.structs.replace(new, session=new_session_id(), follows="", spec=spec)
        raise HoldfastError("gone", f"what run {new.follows} left was deleted", run=new.follows)

    def _agent(self, name: str) -> AgentInfo:
        served = self._agents()
        if not served:
            raise HoldfastError("not_ready", "no agent is served yet", retry_after_s=RETRY_AFTER_S)
        if not name:
            return served[0]
        for agent in served:
            if agent.name == name:
                return agent
        names = ", ".join(a.name for a in served)
        raise HoldfastError("unknown_agent", f"no agent {name!r}; served are {names}", agent=name)

    def _listener(self, request: StartRequest) -> int:
        if not request.listens or request.on_disconnect != OnDisconnect.CANCEL:
            return 0
        return int(request.listener_s * 1000) or self._listener_ms

    def _limits(self, request: StartRequest, agent: AgentInfo) -> Limits:
        settings = self._settings
        synthetic = agent is _SYNTHETIC  # no cap is its
        asked = settings.run_deadline_s if request.deadline_s is None else request.deadline_s
        return Limits(
            deadline_ms=int(asked * 1000),
            queue_timeout_ms=int(settings.queue_timeout_s * 1000),
            session_wait_ms=int(settings.session_wait_s * 1000),
            queued_behind_max=settings.queued_behind,
            runs_active_max=0 if synthetic else settings.runs_active,
            attempts_max=settings.attempts if agent.resumable else 1,
            runs_queued_max=0 if synthetic else settings.runs_queued,
            tenant_active_max=0 if synthetic else settings.tenant_runs_active,
            tenant_queued_max=0 if synthetic else settings.tenant_runs_queued,
        )

    def _judge(self, created: Created, new: NewRun) -> Created:
        match created.status:
            case Status.BUSY if new.policy is Policy.STEER and created.record is not None:
                raise refusals.inbox_full(created.record.key.run, new.limits.queued_behind_max)
            case Status.BUSY:
                raise refusals.busy(new, created.record.key.run if created.record else None)
            case Status.CONFLICT:
                raise refusals.conflict(new.idempotency_key, created.record.key.run if created.record else None)
            case Status.OVERLOADED if created.shed is not None:
                raise self._shedding.refuse(created.shed, new)
            case _:
                return created

    def _served(self, key: RunKey, page: Page) -> Page:
        if page.status is Status.UNKNOWN:
            raise HoldfastError("unknown_run", f"no run {key.run}", run=key.run)
        if page.status is Status.GONE:
            raise HoldfastError("gone", f"the log of run {key.run} was deleted", run=key.run)
        return page


def _spec(request: StartRequest, agent: AgentInfo, key: RunKey, version: Mapping[str, str]) -> RunSpec:
    return RunSpec(
        input=request.input,
        agent=agent.name,
        model=agent.model,
        metadata=request.metadata,
        on_disconnect=request.on_disconnect,
        instructions=request.instructions,
        settings=request.settings,
        protocol=request.protocol,
        trace=trace_id(key.run, request.trace),
        rehearsal=agent.rehearsal,
        kind=agent.kind,
        context=request.context,
        retracts=request.retracts,
        build=version.get("build", ""),
        config=version.get("config", ""),
        remember=request.remember,
        tools=request.tools,
        request=request.request,
    )


def _body_hash(request: StartRequest) -> str:
    asked = msgspec.structs.replace(request, idempotency_key="", trace="", retracts=True, listens=False, listener_s=0.0)
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()

"""WS /api/ws: runs are started, followed, steered and stopped over one socket.

    accept -> ready -> (client frame -> ack | error | pong)*  and, beside them, the events of every run it follows

A socket holds no run: each run it follows is a reader of its log at an offset of its own, as one over SSE is. It
pulls; nothing is queued for it. A page is read, its frames are handed to the ASGI server in groups, and the next page
is read when the server has taken them. So a client that takes nothing costs one page for each run it follows, and
after `STUCK_S` its socket is closed with the places to resume from.

Every operation is a task with a limit, so that none waits for another; past `ws_operations` of them a frame is refused.
They belong to the gateway and not to the socket: what a client asked for is done, even if it is gone meanwhile.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, assert_never

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from holdfast.aio import Owner
from holdfast.domain.errors import HoldfastError
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import OnDisconnect
from holdfast.gateway.access import LOCAL, READ, RUN, check_scope
from holdfast.gateway.bodies import check_input
from holdfast.gateway.events import Offset
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import invalid, unexpected
from holdfast.gateway.requests import trace_of
from holdfast.gateway.runs import BY, decided, made, start_request
from holdfast.gateway.views import run_view
from holdfast.gateway.ws_follow import Follower, within_limit
from holdfast.gateway.ws_frames import (
    SUBPROTOCOL,
    BadFrame,
    ClientFrame,
    Decide,
    Ping,
    Start,
    Steer,
    Stop,
    Subscribe,
    Unsubscribe,
    check_run,
    error_frame,
    frame,
    offered,
    read_after,
    read_frame,
)
from holdfast.gateway.ws_views import Opened, check_view
from holdfast.gateway.ws_wire import CLOSE_S, SocketEnded, Wire
from holdfast.ports.store import RunRecord, Status

Operation = Start | Subscribe | Unsubscribe | Stop | Steer | Decide

PATH = "/api/ws"
_KEY_S = 1.0
BAD_FRAMES_MAX = 16  # one after another; the next one closes the socket


class Socket:
    """One WebSocket, from its acceptance to its end."""

    resumes = True  # its close says from where

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is accepted yet."""
        self._gate = gate
        self._scope = scope
        self._wire = Wire(scope, receive, send, lambda: self._follower.where())
        self._owner = Owner(self._failed)
        self._follower = Follower(gate, self._wire, self._owner)
        self._who = LOCAL
        self._tenant = ""
        self._trace = ""
        self._numbers = count(1)
        self._operations: set[int] = set()  # the frames that have no answer yet
        self._bad = 0

    async def serve(self) -> None:
        """Serve it to its end, and say why it ends."""
        wire = self._wire
        try:
            await wire.accept(offered(self._scope["subprotocols"]))
            await self._know()
            self._gate.attach(self)
            with self._gate.limits.under_way(self._tenant):
                await wire.serve(self._talk())
        except HoldfastError as error:
            wire.end(1013 if error.retryable else 1008, f"{error.code}: {error.detail}")
        except OSError:  # what a server raises for a client that has gone
            wire.left = True
        except Exception as error:  # noqa: BLE001 - the outer edge of a socket: logged, then said by its close code
            wire.end(1011, unexpected(error, PATH, self._gate.log).detail)
        finally:
            await self._leave()
        await wire.close()

    def close(self) -> None:
        """End it now, because the server ends: its client resumes elsewhere, or later."""
        self._wire.end(1013, f"draining; {self._follower.where()}", left=False)

    async def _know(self) -> None:
        """Who is there, and what it wants to see; raises where it may not."""
        connection = HTTPConnection(self._scope)
        self._gate.access.check_origin(connection.headers)
        self._who = await self._gate.access.admit(connection)
        check_scope(self._who, READ)
        self._tenant = self._who.tenant
        self._trace = trace_of(connection)
        self._follower.view = check_view(connection.query_params.get("view", "log"))

    async def _talk(self) -> None:
        await self._wire.write([await self._ready()])
        if not self._gate.access.keyless:
            _ = self._owner.spawn(self._watch_key(), "ws key")
        while (message := await self._wire.read()) is not None:
            try:
                await self._take(message)
            except BadFrame as error:
                self._bad += 1
                await self._wire.write([error_frame(error, error.of, error.id)])
                if self._bad > BAD_FRAMES_MAX:
                    self._wire.end(error.close, f"{self._bad} bad frames: {error.detail}")

    async def _take(self, message: Message) -> None:
        found = read_frame(message.get("text"))
        self._bad = 0
        if isinstance(found, Ping):
            await self._wire.write([frame("pong", {}, found.id)])
        elif len(self._operations) >= self._gate.settings.ws_operations:
            error = HoldfastError(
                "overloaded",
                f"ws_operations = {self._gate.settings.ws_operations} of this socket are under way",
                remedy="wait for an ack, then send this frame again",
            )
            await self._wire.write([error_frame(error, _name(found), found.id)])
        else:
            self._operations.add(id(found))
            _ = self._gate.owner.spawn(self._operate(found, next(self._numbers)), f"ws {_name(found)}")

    async def _watch_key(self) -> None:
        """End the socket when its token ends, or its key is withdrawn: it could start runs for ever otherwise."""
        while not (why := self._gate.access.ended(self._who)):  # noqa: ASYNC110 - nothing tells of time that passes
            await asyncio.sleep(_KEY_S)
        self._wire.end(1008, f"unauthorized: {why}; {self._follower.where()}")

    async def _ready(self) -> bytes:
        gate, settings = self._gate, self._gate.settings
        found, why = await gate.ready.answer()
        parts = (found or {}).get("parts", {})
        missing = [f"{name}: {part.get('why', '?')}" for name, part in parts.items() if not part.get("ok")]
        takes = bool(found and found.get("ready")) and not gate.closing
        return frame(
            "ready",
            {
                "protocol": SUBPROTOCOL,
                "version": gate.version.get("version"),
                "view": self._follower.view,
                "subject": self._who.subject,
                "takes_runs": takes,
                "why": None if takes else (why or "; ".join(missing) or "not ready"),
                "agents": [agent.name for agent in gate.sessions.agents()],
                "ping_s": settings.keepalive_s,
                "limits": {
                    "subscriptions": settings.ws_subscriptions,
                    "operations": settings.ws_operations,
                    "frame_bytes": settings.body_bytes,
                    "input_bytes": settings.input_bytes,
                },
            },
        )

    async def _operate(self, asked: Operation, number: int) -> None:
        """One operation: its ack, or its error; each of its steps within a limit."""
        try:
            try:
                await self._perform(asked, number)
            except HoldfastError as error:
                await self._answer(asked, error_frame(error, _name(asked), asked.id, **_run_of(asked)))
            except SocketEnded:
                raise
            except Exception as error:  # noqa: BLE001 - logged, and told to the client; its other operations go on
                problem = unexpected(error, PATH, self._gate.log)
                await self._answer(asked, error_frame(problem, _name(asked), asked.id, **_run_of(asked)))
        except SocketEnded:
            return
        finally:
            self._operations.discard(id(asked))

    async def _answer(self, asked: Operation, data: bytes) -> None:
        """Until it is written it counts, so that a client that reads nothing cannot make answers pile up."""
        await self._wire.write([data])
        self._operations.discard(id(asked))  # before its client can have read it, so that it may go on at once

    async def _perform(self, asked: Operation, number: int) -> None:
        gate = self._gate
        if not isinstance(asked, Subscribe | Unsubscribe):
            check_scope(self._who, RUN)
        gate.limits.take(self._tenant)
        match asked:
            case Start():
                await self._start(asked, number)
            case Subscribe():
                await self._subscribe(asked, number)
            case Unsubscribe():
                await self._unsubscribe(asked)
            case Stop():
                async with within_limit():
                    record = await gate.sessions.stop(self._key(asked.run), BY)
                await self._ack(asked, record)
            case Steer():
                text = check_input(asked.input, gate.settings.input_bytes)
                async with within_limit():
                    record = await gate.sessions.steer(self._key(asked.run), text, asked.idempotency_key)
                await self._ack(asked, record)
            case Decide():
                found = decided(asked.decisions)
                async with within_limit():
                    record = await gate.sessions.decide(self._key(asked.run), found, partly=True)
                await self._ack(asked, record)
            case _:
                assert_never(asked)

    async def _start(self, asked: Start, number: int) -> None:
        ends_with_us = asked.on_disconnect is OnDisconnect.CANCEL
        if ends_with_us and not asked.subscribe:
            raise invalid("on_disconnect cancel needs subscribe: a run that ends with its socket is followed by it")
        wanted = start_request(
            self._gate, asked, idempotency_key=asked.idempotency_key, trace=self._trace, listens=ends_with_us
        )
        if not asked.subscribe:
            async with within_limit():
                created = await self._gate.sessions.start(self._tenant, wanted)
            await self._ack(asked, made(created), created.status)
            return
        with self._follower.room(number) as found:
            async with within_limit():
                created = await self._gate.sessions.start(self._tenant, wanted)
            record = made(created)
            if ends_with_us and created.status is Status.OK:
                self._follower.hold(record.key)
            await self._ack(asked, record, created.status)
            try:
                await self._follower.follow(found, record.key, Offset())
            except HoldfastError as error:  # the start is acked; this is another failure, with another remedy
                await self._wire.write([error_frame(error, "subscribe", asked.id, run=record.key.run)])

    async def _subscribe(self, asked: Subscribe, number: int) -> None:
        key, offset = self._key(asked.run), read_after(asked.after)

        async def answer(opened: Opened) -> None:
            facts = {"state": opened.state, "head": opened.head, "epoch": opened.epoch, "ended": opened.ended}
            await self._answer(asked, frame("ack", {"of": "subscribe", "run": key.run, **facts}, asked.id))

        with self._follower.room(number, key) as found:
            await self._follower.follow(found, key, offset, answer)

    async def _unsubscribe(self, asked: Unsubscribe) -> None:
        key = self._key(asked.run)
        if self._follower.holds(key):
            raise invalid("this run is cancelled with this socket, which has to follow it; stop the run instead")
        found = self._follower.leave(key)
        fields = {"of": "unsubscribe", "run": asked.run, "was": found is not None, "at": found.at if found else ""}
        await self._answer(asked, frame("ack", fields, asked.id))

    async def _ack(self, asked: Start | Stop | Steer | Decide, record: RunRecord, status: Status = Status.OK) -> None:
        fields: dict[str, Any] = {"of": _name(asked), "run": record.key.run, "session": record.session}
        if isinstance(asked, Start):
            fields |= {"replayed": status is Status.EXISTS, "steered": status is Status.STEERED}
        await self._answer(asked, frame("ack", {**fields, "record": run_view(record)}, asked.id))

    async def _leave(self) -> None:
        """Stop reading; what was to end with this socket ends, unless it was the server that closed it."""
        wire = self._wire
        wire.closing = wire.closing or (1000, "")
        self._gate.detach(self)
        self._follower.end()
        await self._owner.close(CLOSE_S)

    def _key(self, run: str) -> RunKey:
        return RunKey(self._tenant, check_run(run))

    def _failed(self, name: str, error: BaseException) -> None:
        self._gate.log.write("task_failed", task=name, error=f"{type(error).__name__}: {error}")
        self._wire.end(1011, f"unexpected {type(error).__name__}")


def _name(asked: ClientFrame) -> str:
    return str(asked.__struct_config__.tag)


def _run_of(asked: Operation) -> dict[str, str]:
    return {} if isinstance(asked, Start) else {"run": asked.run}

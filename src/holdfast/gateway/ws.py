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
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, contextmanager
from typing import Any, assert_never

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from holdfast.aio import Owner
from holdfast.domain.errors import HoldfastError, StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import OnDisconnect
from holdfast.gateway.bodies import check_input
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import invalid, unexpected
from holdfast.gateway.readers import PIECE_BYTES, pages
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.runs import BY, made, start_request
from holdfast.gateway.views import run_view
from holdfast.gateway.ws_frames import (
    SUBPROTOCOL,
    BadFrame,
    ClientFrame,
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
from holdfast.gateway.ws_views import Opened, Placed, View, check_view, view_of
from holdfast.gateway.ws_wire import CLOSE_S, SocketEnded, Wire
from holdfast.ports.store import RunRecord, Status

PATH = "/api/ws"
OPERATION_S = 30.0
GROUP_FRAMES = 64  # so many are written before others on the loop have their turn
BAD_FRAMES_MAX = 16  # one after another; the next one closes the socket


class Following:
    """A run that a socket follows, and how far."""

    def __init__(self, key: RunKey, view: View) -> None:
        self.key = key
        self.view = view
        self.at = ""  # event id of the last frame handed to the server
        self.task: asyncio.Task[None] | None = None

    def leave(self) -> None:
        """Follow it no longer; not one more frame of it is written."""
        if self.task is not None:
            self.task.cancel()


class Socket:
    """One WebSocket, from its acceptance to its end."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        """Nothing is accepted yet."""
        self._gate = gate
        self._scope = scope
        self._wire = Wire(scope, receive, send, self._where)
        self._owner = Owner(self._failed)
        self._tenant = ""
        self._trace = ""
        self._view = ""
        self._following: dict[str, Following] = {}
        self._opening = 0
        self._operations = 0
        self._bad = 0
        self._held: dict[str, AbstractContextManager[None]] = {}  # runs that are cancelled with this socket

    async def serve(self) -> None:
        """Serve it to its end, and say why it ends."""
        wire = self._wire
        try:
            await wire.accept(offered(self._scope["subprotocols"]))
            self._know()
            self._gate.attach(self)
            await wire.serve(self._talk())
        except HoldfastError as error:
            wire.end(1008, f"{error.code}: {error.detail}")
        except OSError:  # what a server raises for a client that has gone
            wire.left = True
        except Exception as error:  # noqa: BLE001 - the outer edge of a socket: logged, then said by its close code
            wire.end(1011, unexpected(error, PATH, self._gate.log).detail)
        finally:
            await self._leave()
        await wire.close()

    def close(self) -> None:
        """End it now, because the server ends: its client resumes elsewhere, or later."""
        self._wire.end(1013, f"draining; {self._where()}", left=False)

    def _know(self) -> None:
        """Who is there, and what it wants to see; raises where it may not."""
        connection = HTTPConnection(self._scope)
        self._tenant = tenant_of(connection)
        self._trace = trace_of(connection)
        self._view = check_view(connection.query_params.get("view", "log"))

    async def _talk(self) -> None:
        await self._wire.write([await self._ready()])
        while (message := await self._wire.read()) is not None:
            try:
                await self._take(message)
            except BadFrame as error:
                self._bad += 1
                await self._wire.write([error_frame(error, None, error.id)])
                if self._bad > BAD_FRAMES_MAX:
                    self._wire.end(error.close, f"{self._bad} bad frames: {error.detail}")

    async def _take(self, message: Message) -> None:
        found = read_frame(message.get("text"))
        self._bad = 0
        if isinstance(found, Ping):
            await self._wire.write([frame("pong", {}, found.id)])
        elif isinstance(found, Unsubscribe):
            await self._wire.write([self._unsubscribe(found)])
        elif self._operations >= self._gate.settings.ws_operations:
            error = HoldfastError(
                "overloaded",
                f"ws_operations = {self._gate.settings.ws_operations} of this socket are under way",
                remedy="wait for an ack, then send this frame again",
            )
            await self._wire.write([error_frame(error, _name(found), found.id)])
        else:
            self._operations += 1
            _ = self._gate.owner.spawn(self._operate(found), f"ws {_name(found)}")

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
                "view": self._view,
                "subject": self._tenant,
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

    async def _operate(self, asked: Start | Subscribe | Stop | Steer) -> None:
        """One operation: its ack, or its error; each of its steps within a limit."""
        try:
            try:
                await self._perform(asked)
            except HoldfastError as error:
                await self._wire.write([error_frame(error, _name(asked), asked.id, **_run_of(asked))])
            except SocketEnded:
                raise
            except Exception as error:  # noqa: BLE001 - logged, and told to the client; its other operations go on
                problem = unexpected(error, PATH, self._gate.log)
                await self._wire.write([error_frame(problem, _name(asked), asked.id, **_run_of(asked))])
        except SocketEnded:
            return
        finally:
            self._operations -= 1

    async def _perform(self, asked: Start | Subscribe | Stop | Steer) -> None:
        gate = self._gate
        match asked:
            case Start():
                await self._start(asked)
            case Subscribe():
                await self._subscribe(asked)
            case Stop():
                async with _limit():
                    record = await gate.sessions.stop(self._key(asked.run), BY)
                await self._ack(asked, record)
            case Steer():
                text = check_input(asked.input, gate.settings.input_bytes)
                async with _limit():
                    record = await gate.sessions.steer(self._key(asked.run), text, asked.idempotency_key)
                await self._ack(asked, record)
            case _:
                assert_never(asked)

    async def _start(self, asked: Start) -> None:
        ends_with_us = asked.on_disconnect is OnDisconnect.CANCEL
        if ends_with_us and not asked.subscribe:
            raise invalid("on_disconnect cancel needs subscribe: a run that ends with its socket is followed by it")
        wanted = start_request(
            self._gate, asked, idempotency_key=asked.idempotency_key, trace=self._trace, listens=ends_with_us
        )
        if not asked.subscribe:
            async with _limit():
                created = await self._gate.sessions.start(self._tenant, wanted)
            await self._ack(asked, made(created), created.status)
            return
        with self._room():
            async with _limit():
                created = await self._gate.sessions.start(self._tenant, wanted)
            record = made(created)
            if ends_with_us and created.status is Status.OK:
                self._hold(record.key)
            await self._ack(asked, record, created.status)
            try:
                await self._follow(record.key, Subscribe(record.key.run, id=asked.id), acked=True)
            except HoldfastError as error:  # the start is acked; this is another failure, with another remedy
                await self._wire.write([error_frame(error, "subscribe", asked.id, run=record.key.run)])

    async def _subscribe(self, asked: Subscribe) -> None:
        key = self._key(asked.run)
        if asked.run in self._following:
            await self._follow(key, asked)
            return
        with self._room():
            await self._follow(key, asked)

    async def _follow(self, key: RunKey, asked: Subscribe, *, acked: bool = False) -> None:
        """Open a log at the offset, say so, and read it on in a task of the socket's."""
        found = Following(key, view_of(self._view))
        offset = read_after(asked.after)
        try:
            async with _limit():
                opened = await found.view.open(self._gate, key, offset)
        except HoldfastError:
            self._let_go(key.run)
            raise
        if self._wire.ended:
            raise SocketEnded
        before = self._following.get(key.run)
        if before is not None:
            before.leave()  # its last frame is out, and ours begin after the ack
        self._following[key.run] = found
        first = [] if acked else [self._subscribed(asked, opened)]
        if opened.resync:
            first.append(frame("resync", opened.resync))
        found.task = self._owner.spawn(self._read(found, first, opened), f"ws reader {key.run}")

    def _subscribed(self, asked: Subscribe, opened: Opened) -> bytes:
        fields = {
            "of": "subscribe",
            "run": asked.run,
            "state": opened.state,
            "head": opened.head,
            "epoch": opened.epoch,
            "ended": opened.ended,
        }
        return frame("ack", fields, asked.id)

    async def _read(self, found: Following, first: list[bytes], opened: Opened) -> None:
        """Write a log's frames until its terminal event, which ends the subscription."""
        try:
            if first:
                await self._wire.write(first)
            await self._write_placed(found, opened.frames)
            if opened.state.terminal and opened.at >= opened.head:
                return
            async with aclosing(pages(self._gate, found.key, opened.at)) as tail:
                async for page in tail:
                    if isinstance(page, HoldfastError):
                        await self._wire.write([error_frame(page, "subscribe", run=found.key.run)])
                        return
                    await self._write_placed(found, found.view.page(page))
        except SocketEnded:
            return
        finally:
            if self._following.get(found.key.run) is found:
                del self._following[found.key.run]
                if not self._wire.ended:
                    self._let_go(found.key.run)

    def _unsubscribe(self, asked: Unsubscribe) -> bytes:
        if asked.run in self._held:
            error = invalid("this run is cancelled with this socket, which has to follow it; stop the run instead")
            return error_frame(error, "unsubscribe", asked.id, run=asked.run)
        found = self._following.pop(asked.run, None)
        if found is not None:
            found.leave()
        fields = {"of": "unsubscribe", "run": asked.run, "was": found is not None, "at": found.at if found else ""}
        return frame("ack", fields, asked.id)

    async def _ack(self, asked: ClientFrame, record: RunRecord, status: Status = Status.OK) -> None:
        fields: dict[str, Any] = {"of": _name(asked), "run": record.key.run, "session": record.session}
        if isinstance(asked, Start):
            fields |= {"replayed": status is Status.EXISTS, "steered": status is Status.STEERED}
        await self._wire.write([frame("ack", {**fields, "record": run_view(record)}, asked.id)])

    async def _write_placed(self, found: Following, placed: Sequence[Placed]) -> None:
        for group in _groups(placed):
            await self._wire.write([item.data for item in group])
            found.at = str(group[-1].offset)
            if len(placed) > len(group):
                await asyncio.sleep(0)

    async def _leave(self) -> None:
        """Stop reading; what was to end with this socket ends, unless it was the server that closed it."""
        wire = self._wire
        wire.closing = wire.closing or (1000, "")
        self._gate.detach(self)
        for run in list(self._held):
            self._let_go(run)
            if wire.left:
                self._gate.client_gone(RunKey(self._tenant, run))
        await self._owner.close(CLOSE_S)

    def _hold(self, key: RunKey) -> None:
        """The run is cancelled when this socket's client goes; if that was before this, now."""
        if self._wire.ended:
            if self._wire.left:
                self._gate.client_gone(key)
            return
        listening = self._gate.listening(key)
        listening.__enter__()
        self._held[key.run] = listening

    def _let_go(self, run: str) -> None:
        listening = self._held.pop(run, None)
        if listening is not None:
            listening.__exit__(None, None, None)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Room for one more run to follow, kept while it is opened."""
        most = self._gate.settings.ws_subscriptions
        if len(self._following) + self._opening >= most:
            raise HoldfastError(
                "overloaded", f"ws_subscriptions = {most} is reached", remedy="unsubscribe, or open another socket"
            )
        self._opening += 1
        try:
            yield
        finally:
            self._opening -= 1

    def _where(self) -> str:
        places = [f"{run} after {found.at}" for run, found in self._following.items() if found.at]
        return f"resume {', '.join(places)}" if places else "nothing to resume"

    def _key(self, run: str) -> RunKey:
        return RunKey(self._tenant, check_run(run))

    def _failed(self, name: str, error: BaseException) -> None:
        self._gate.log.write("task_failed", task=name, error=f"{type(error).__name__}: {error}")
        self._wire.end(1011, f"unexpected {type(error).__name__}")


@asynccontextmanager
async def _limit() -> AsyncIterator[None]:
    """At most `OPERATION_S` for what the store is asked."""
    try:
        async with asyncio.timeout(OPERATION_S):
            yield
    except TimeoutError:
        raise StoreUnavailable(f"no answer within {OPERATION_S:.0f} s; it may be done yet") from None


def _name(asked: ClientFrame) -> str:
    return str(asked.__struct_config__.tag)


def _run_of(asked: ClientFrame) -> dict[str, str]:
    return {} if isinstance(asked, Start | Ping) else {"run": asked.run}


def _groups(placed: Sequence[Placed]) -> Iterator[Sequence[Placed]]:
    """Parts that are small enough to be written in one piece."""
    begin = size = 0
    for end, item in enumerate(placed):
        if end > begin and (end - begin >= GROUP_FRAMES or size + len(item.data) > PIECE_BYTES):
            yield placed[begin:end]
            begin, size = end, 0
        size += len(item.data)
    if placed:
        yield placed[begin:]

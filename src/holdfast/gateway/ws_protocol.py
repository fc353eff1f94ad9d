"""uvicorn's WebSocket protocol with the bounds that it does not bring.

What is added, and why:
- messages are parsed a little at a time while the app is behind (uvicorn queues every frame of one read)
- a message has a time to be whole, and a number of fragments (empty ones cost their sender nothing)
- pongs are not queued without end for a client that pings and never reads
- a close frame goes out even where the client takes nothing; soon after it the connection is dropped, unsent bytes
  and all (uvicorn waits until they are taken)
- after a failure what comes in is thrown away for a moment: a close with unread input would reset the connection,
  and the client would not see why
- a client that answers no ping is told 1013, come back, and not that something broke; so is everybody at the end
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.http11 import Request

from holdfast.gateway.bodies import READ_S
from holdfast.gateway.readers import ABORT, STUCK_S

PING_TIMEOUT_S = STUCK_S
FRAGMENTS_MAX = 1024
PIECE_BYTES = 4096
PONG_BYTES_MAX = 262_144  # of unsent bytes, with which no further ping is answered
LINGER_S = 5.0  # for a client to take what it has not, and to close, once the close frame is written


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """One connection after its upgrade."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._unparsed = bytearray()
        self._whole_timer: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget what was not parsed."""
        self._unparsed.clear()
        self._message_whole()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse it now, or once the app has read what is before it."""
        self._unparsed += data
        self._parse()

    async def receive(self) -> Any:
        """The next message for the app; then the app keeps up, and more is parsed."""
        message = await super().receive()
        self._parse()
        return message

    async def send(self, message: Any) -> None:
        """A message of the app's; the last one waits for nobody."""
        if self.close_sent:
            raise ClientDisconnected
        if message["type"] != "websocket.close" or not self.handshake_complete:
            try:
                await super().send(message)
            except RuntimeError:
                if self.close_sent:  # while it waited
                    raise ClientDisconnected from None
                raise
            if message["type"] == "websocket.http.response.body":  # refused; uvicorn would log that nothing was said
                self.handshake_complete = True
            return
        self.writable.set()
        await super().send(message)
        self._linger()
        self._parse()  # the client's own close may be behind what the app has not read

    def handle_connect(self, event: Request) -> None:
        """Let the app drop the connection."""
        super().handle_connect(event)
        if self.response.status_code == 101:
            self.scope["extensions"][ABORT] = {"abort": self.transport.abort}

    def handle_cont(self, event: Frame) -> None:
        """A fragment."""
        if len(self.frames) >= FRAGMENTS_MAX:
            self._fail(1009, f"a message has at most {FRAGMENTS_MAX} fragments")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """A ping of the client's; its pong is ready to be written."""
        if self.transport.get_write_buffer_size() > PONG_BYTES_MAX:
            self._fail(1013, "pings are sent and nothing is read")
        else:
            super().handle_ping()

    def handle_parser_exception(self) -> None:
        """What came is not WebSocket, or too large; the parser has the close frame ready."""
        if self.close_sent or self.conn.close_sent is None:
            return
        self._told(self.conn.close_sent.code, self.conn.close_sent.reason)

    def keepalive_timeout(self) -> None:
        """No pong came in time."""
        self.pong_timer = None
        self._fail(1013, f"no ping was answered for {PING_TIMEOUT_S:.0f} s; resume after the last event")

    def shutdown(self) -> None:
        """The server ends; the app has closed already, unless it is not ours."""
        if self.handshake_complete:
            self._fail(1013, "draining; resume after the last event", app_code=1012)
        super().shutdown()

    def _parse(self) -> None:
        """Parse while the app keeps up; the rest waits here, and the transport reads no more meanwhile."""
        while self._unparsed and not self.read_paused and not self.transport.is_closing():
            piece = bytes(self._unparsed[:PIECE_BYTES])
            del self._unparsed[:PIECE_BYTES]
            super().data_received(piece)
        if self.conn.current_size is None and not self.conn.reader.buffer:
            self._message_whole()
        elif self._whole_timer is None and self.handshake_complete and not self.close_sent:
            self._whole_timer = self.loop.call_later(READ_S, self._message_late)

    def _message_whole(self) -> None:
        if self._whole_timer is not None:
            self._whole_timer.cancel()
            self._whole_timer = None

    def _message_late(self) -> None:
        self._whole_timer = None
        if self.read_paused:  # it is not the client that is slow
            self._whole_timer = self.loop.call_later(READ_S, self._message_late)
        else:
            self._fail(1008, f"a message was not whole after {READ_S:.0f} s")

    def _fail(self, code: int, reason: str, app_code: int | None = None) -> None:
        """Close from here: tell the client and the app, and wait for neither."""
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(code, reason)
        self._told(code if app_code is None else app_code, reason)

    def _told(self, app_code: int, reason: str) -> None:
        """The close frame is in the parser's output: write it, and read on only to throw away."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": app_code, "reason": reason})
        self.stop_keepalive()
        self._message_whole()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.writable.set()  # whoever waits to send hears that it is over
        self._linger()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):  # the client has gone, and the loop has not said so yet
            self.transport.write_eof()

    def _linger(self) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.abort)

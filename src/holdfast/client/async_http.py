"""The asynchronous client: the same calls as coroutines, on asyncio or trio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import anyio
import httpx2

from holdfast.client.calls import DEFAULT_URL, LIMITS, Attempts, Call, Calls, Record, check_url, run_path
from holdfast.client.errors import Reply
from holdfast.client.lists import ListReading
from holdfast.client.stream import (
    BROKEN,
    FRAME_BYTES_MAX,
    REFUSAL_BYTES_MAX,
    Backoff,
    Connection,
    Event,
    Interrupted,
    OnState,
    Place,
    Reading,
    reply_of,
)


class AsyncClient(Calls[Coroutine[Any, Any, Record]]):
    """One server, for any number of tasks of one loop; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        connect_s: float = 5.0,
        answer_s: float = 30.0,
        busy_s: float = 30.0,
        silence_s: float = 30.0,
        backoff: Backoff | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is sent yet. The arguments are those of `Client`.

        Raises:
            ValueError: `url` is no http address.
        """
        self.url, trust_env = check_url(url)
        self._silence_s = silence_s
        self._answer_s = answer_s
        self._connect_s = connect_s
        self._busy_s = busy_s
        self._backoff = backoff or Backoff()
        self._http = httpx2.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=LIMITS,
            transport=transport,
            trust_env=trust_env,
        )

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; runs go on."""
        await self._http.aclose()

    async def history(self, session: str) -> list[dict[str, Any]]:
        """What was said in a session."""
        return list((await self.session(session))["messages"])

    def follow(self, run: str, after: int | str = 0, *, on_state: OnState | None = None) -> AsyncFollow:
        """Yield a run's events after `after`, live, until its terminal event: see `Client.follow`."""
        path = run_path(run, "/events")
        return AsyncFollow(self._http, Reading(self.url, path, Place(after), self._backoff, self._silence_s, on_state))

    def follow_runs(self, *, session: str | None = None, on_state: OnState | None = None) -> AsyncFollow:
        """Yield the list of runs and its changes, until it is closed: see `Client.follow_runs`."""
        return AsyncFollow(self._http, ListReading(self.url, session, self._backoff, self._silence_s, on_state))

    async def _ask(self, call: Call) -> Record:
        attempts = Attempts(self.url, call, self._backoff, self._busy_s)
        while True:
            try:
                answer = attempts.answered(await self._send(call))
            except (httpx2.RequestError, TimeoutError) as error:
                attempts.lost(error)
                continue
            if not isinstance(answer, float):
                return answer
            await anyio.sleep(answer)

    async def _send(self, call: Call) -> Reply:
        limit_s = self._answer_s + call.longer_s
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.parameters,
            json=call.json,
            headers=call.sent_headers,
            timeout=httpx2.Timeout(limit_s, connect=self._connect_s),
        )
        with anyio.fail_after(self._connect_s + limit_s):
            response = await self._http.send(request)
        return reply_of(response, response.content)


class AsyncFollow(AsyncIterator[Event]):
    """A run's events as they come, for one task; left early, it is to be closed, or used as a context manager."""

    def __init__(self, http: httpx2.AsyncClient, reading: Reading) -> None:
        self._reading = reading
        self._events = _events(http, reading)

    @property
    def connection(self) -> Connection:
        """How the connection stands."""
        return self._reading.connection

    @property
    def place(self) -> str:
        """The last event that was handed out, as `after` takes it."""
        return str(self._reading.place.at)

    async def __anext__(self) -> Event:
        """The next event."""
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        """The follow itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection; the run goes on."""
        await self._events.aclose()
        self._reading.close()


async def _events(http: httpx2.AsyncClient, reading: Reading) -> AsyncGenerator[Event, None]:
    while True:
        query, headers = reading.connect()
        try:
            async with aclosing(_one_connection(http, reading, query, headers)) as events:
                async for event in events:
                    yield event
            if reading.over:
                reading.close()
                return
            raise Interrupted(reading.closed)
        except BROKEN as error:
            wait_s = reading.failed(error)
        await anyio.sleep(wait_s)


async def _one_connection(
    http: httpx2.AsyncClient, reading: Reading, query: dict[str, str], headers: dict[str, str]
) -> AsyncGenerator[Event, None]:
    request = http.build_request("GET", reading.path, params=query, headers=headers, timeout=reading.timeout)
    with anyio.fail_after(2 * reading.silence_s):
        response = await http.send(request, stream=True)
    try:
        if response.status_code not in (200, 204):
            with anyio.fail_after(reading.silence_s):
                body = await _read(response)
            raise reading.refused(reply_of(response, body))
        if not reading.opened(response):
            return
        async for frame in httpx2.EventSource(response, max_event_size=FRAME_BYTES_MAX):
            event = reading.take(frame)
            if event is not None:
                yield event
                if reading.over:
                    return
    finally:
        await response.aclose()


async def _read(response: httpx2.Response) -> bytes:
    """The body of a refusal, or its beginning."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > REFUSAL_BYTES_MAX:
            break
    return bytes(body)

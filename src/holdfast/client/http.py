"""The synchronous client: it needs no event loop and starts no thread."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, Self

import httpx2

from holdfast.client.calls import (
    DEFAULT_URL,
    LIMITS,
    Attempts,
    Call,
    Calls,
    Record,
    check_url,
    run_path,
)
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
    OnInterrupt,
    OnState,
    Place,
    Reading,
    heard_by,
    reply_of,
)


class Client(Calls[Record]):
    """One server, for any number of threads; close it, or use it as a context manager."""

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
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Where the server is, with http:// or https://.
            api_key: Sent as `Authorization: Bearer`.
            connect_s: How long a connection may take.
            answer_s: How long an answer may take.
            busy_s: How long in all a call may wait and be repeated where the server says that it is busy (429, 503),
                before that is raised; 0 raises it at once.
            silence_s: How long a stream may be silent, keepalives included, before it counts as interrupted.
            backoff: How interrupted streams come back.
            transport: Instead of the network, for tests.

        Raises:
            ValueError: `url` is no http address.
        """
        self.url, trust_env = check_url(url)
        self._silence_s = silence_s
        self._answer_s = answer_s
        self._connect_s = connect_s
        self._busy_s = busy_s
        self._backoff = backoff or Backoff()
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=LIMITS,
            transport=transport,
            trust_env=trust_env,
        )

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connections; runs go on."""
        self._http.close()

    def history(self, session: str) -> list[dict[str, Any]]:
        """What was said in a session."""
        return list(self.session(session)["messages"])

    def follow(self, run: str, after: int | str = 0, *, on_state: OnState | None = None) -> Follow:
        """Yield a run's events after `after` (a seq or an event id), live, until its terminal event.

        Interruptions are resumed. A `{"type": "resync", ...}` without a seq says that the log never had
        `after`: forget what was shown, the log follows from its start.

        Args:
            run: The run.
            after: The last event that the caller has.
            on_state: Hears of each change of the connection.

        Raises:
            ValueError: `after` is neither.
        """
        path = run_path(run, "/events")
        return Follow(self._http, Reading(self.url, path, Place(after), self._backoff, self._silence_s, on_state))

    def follow_runs(self, *, session: str | None = None, on_state: OnState | None = None) -> Follow:
        """Yield the list of runs, and then what changes of it, until it is closed; interruptions begin it anew.

        `{"type": "runs", "runs": [...]}` is the list: forget the one before. `{"type": "run", ...record}` is a run that
        is new or different, `{"type": "forgotten", "id", "session"}` one that is to be taken off.

        Args:
            session: Only runs of this session.
            on_state: Hears of each change of the connection.
        """
        return Follow(self._http, ListReading(self.url, session, self._backoff, self._silence_s, on_state))

    def events(self, run: str, after: int | str = 0, *, on_interrupt: OnInterrupt | None = None) -> Follow:
        """`follow` for whoever hears of interruptions only: what it was, and the seconds until the next attempt."""
        return self.follow(run, after, on_state=heard_by(on_interrupt))

    def _ask(self, call: Call) -> Record:
        attempts = Attempts(self.url, call, self._backoff, self._busy_s)
        while True:
            try:
                answer = attempts.answered(self._send(call))
            except (httpx2.RequestError, TimeoutError) as error:
                attempts.lost(error)
                continue
            if not isinstance(answer, float):
                return answer
            self._backoff.sleep(answer)

    def _send(self, call: Call) -> Reply:
        limit_s = self._answer_s + call.longer_s
        timeout = httpx2.Timeout(limit_s, connect=self._connect_s)
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.parameters,
            json=call.json,
            headers=call.sent_headers,
            timeout=timeout,
        )
        end = time.monotonic() + limit_s
        response = self._http.send(request, stream=True)
        try:
            return _read(response, end, None)
        finally:
            response.close()


class Follow(Iterator[Event]):
    """A run's events as they come, for one thread; left early, it is to be closed, or used as a context manager."""

    def __init__(self, http: httpx2.Client, reading: Reading) -> None:
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

    def __next__(self) -> Event:
        """The next event."""
        return next(self._events)

    def __enter__(self) -> Self:
        """The follow itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Close the connection; the run goes on."""
        self._events.close()
        self._reading.close()


def _events(http: httpx2.Client, reading: Reading) -> Generator[Event, None, None]:
    while True:
        query, headers = reading.connect()
        try:
            yield from _one_connection(http, reading, query, headers)
            if reading.over:
                reading.close()
                return
            raise Interrupted(reading.closed)
        except BROKEN as error:
            wait_s = reading.failed(error)
        reading.backoff.sleep(wait_s)


def _one_connection(
    http: httpx2.Client, reading: Reading, query: dict[str, str], headers: dict[str, str]
) -> Generator[Event, None, None]:
    with http.stream("GET", reading.path, params=query, headers=headers, timeout=reading.timeout) as response:
        if response.status_code not in (200, 204):
            raise reading.refused(_read(response, time.monotonic() + reading.silence_s, REFUSAL_BYTES_MAX))
        if not reading.opened(response):
            return
        for frame in httpx2.EventSource(response, max_event_size=FRAME_BYTES_MAX):
            event = reading.take(frame)
            if event is not None:
                yield event
                if reading.over:
                    return


def _read(response: httpx2.Response, end: float, bytes_max: int | None) -> Reply:
    """The answer, whole or its first `bytes_max` bytes; TimeoutError where it is not there at `end`."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if time.monotonic() > end:
            raise TimeoutError
        if bytes_max is not None and len(body) > bytes_max:
            break
    return reply_of(response, bytes(body))

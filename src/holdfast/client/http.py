"""The calls: one method for each thing that a client asks of a server.

Every call may be repeated: reads by nature, stop because it is idempotent, start because it carries an
Idempotency-Key. So an answer that was lost on the way costs a repeat, never a second run.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlsplit

import httpx2

from holdfast.client.errors import ServerUnreachable, api_error, unexpected
from holdfast.client.stream import Backoff, Event, OnInterrupt, Place, follow

DEFAULT_URL: Final = "http://127.0.0.1:8484"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_REPEATS: Final = 2

Record = dict[str, Any]


class Client:
    """One server, for any number of threads; close it, or use it as a context manager."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        api_key: str | None = None,
        *,
        connect_s: float = 5.0,
        answer_s: float = 30.0,
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
            silence_s: How long a stream may be silent, keepalives included, before it counts as interrupted.
            backoff: How interrupted streams come back.
            transport: Instead of the network, for tests.

        Raises:
            ValueError: `url` is no http address.
        """
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{url!r} is no address such as {DEFAULT_URL}")
        self.url = url.rstrip("/")
        self._silence_s = silence_s
        self._answer_s = answer_s
        self._connect_s = connect_s
        self._backoff = backoff or Backoff()
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=self._timeout(answer_s),
            transport=transport,
            trust_env=parts.hostname not in _LOOPBACK,  # a proxy cannot reach our loopback
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

    def start(
        self,
        input: str,
        *,
        session: str | None = None,
        agent: str | None = None,
        on_busy: str | None = None,
        on_disconnect: str | None = None,
        deadline_s: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Record:
        """Start a run and return its record.

        Args:
            input: The prompt.
            session: The conversation it belongs to; without one a new one is made and named in the record.
            agent: One of the served agents; the first by default.
            on_busy: supersede, enqueue, reject or steer, when the session has an active run.
            on_disconnect: continue or cancel.
            deadline_s: How long the run may take.
            metadata: The caller's own values, kept in the record.
            idempotency_key: Repeats with the same key and body answer the same run; a fresh one by default.
        """
        asked = {
            "input": input,
            "session": session,
            "agent": agent,
            "on_busy": on_busy,
            "on_disconnect": on_disconnect,
            "deadline_s": deadline_s,
            "metadata": metadata,
        }
        body = {name: value for name, value in asked.items() if value is not None}
        key = idempotency_key or new_idempotency_key()
        return self._ask("POST", "/api/runs", json=body, headers={"Idempotency-Key": key})

    def record(self, run: str) -> Record:
        """A run's record as it is now."""
        return self._ask("GET", f"/api/runs/{_part(run)}")

    def runs(
        self,
        *,
        session: str | None = None,
        state: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Record:
        """A page of runs, newest first: `{"runs": [...], "next": id or null}`."""
        return self._ask("GET", "/api/runs", query={"session": session, "state": state, "limit": limit, "after": after})

    def events(self, run: str, after: int | str = 0, *, on_interrupt: OnInterrupt | None = None) -> Iterator[Event]:
        """Yield a run's events after `after` (a seq or an event id), live, until its terminal event.

        Interruptions are resumed. A `{"type": "resync", ...}` without a seq says that the log never had
        `after`: forget what was shown, the log follows from its start.

        Args:
            run: The run.
            after: The last event that the caller has.
            on_interrupt: Hears of each interruption: what it was, and the seconds until the next attempt.
        """
        return follow(
            self._http,
            f"/api/runs/{_part(run)}/events",
            Place(after),
            backoff=self._backoff,
            silence_s=self._silence_s,
            on_interrupt=on_interrupt or (lambda cause, wait_s: None),
        )

    def page(self, run: str, after: int | str = 0, *, limit: int | None = None) -> Record:
        """What a run's log has after `after` now: `{"events", "head", "state"}`."""
        return self._ask("GET", f"/api/runs/{_part(run)}/events", query={"after": after, "limit": limit})

    def stop(self, run: str, *, wait_s: float | None = None) -> Record:
        """Ask a run to stop and return its record; with `wait_s`, once it has ended or that time is over."""
        return self._ask(
            "POST",
            f"/api/runs/{_part(run)}/stop",
            query={"wait_s": wait_s},
            answer_s=self._answer_s + (wait_s or 0.0),
        )

    def decide(self, run: str, decisions: Sequence[dict[str, Any]]) -> Record:
        """Decide about every call that a waiting run asks about; its record."""
        return self._ask("POST", f"/api/runs/{_part(run)}/decisions", json={"decisions": list(decisions)})

    def inspect(self, run: str) -> Record:
        """Why a run is not finished: what it waits on, since when, and which timers will end that."""
        return self._ask("GET", f"/api/runs/{_part(run)}/inspect")

    def sessions(self, *, limit: int | None = None, after: str | None = None) -> Record:
        """A page of sessions, most recently used first: `{"sessions": [...], "next": id or null}`."""
        return self._ask("GET", "/api/sessions", query={"limit": limit, "after": after})

    def session(self, session: str) -> Record:
        """A session: its messages, its active run, its queue."""
        return self._ask("GET", f"/api/sessions/{_part(session)}")

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        json: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        answer_s: float | None = None,
    ) -> Record:
        """Send a request, and again where the answer was lost; the object that it answered."""
        response = self._send(
            self._http.build_request(
                method,
                path,
                params={name: value for name, value in (query or {}).items() if value is not None},
                json=json,
                headers={"Accept": "application/json", **(headers or {})},
                timeout=self._timeout(answer_s or self._answer_s),
            )
        )
        if not response.is_success:
            raise api_error(response)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise unexpected(response)
        return answer

    def _send(self, request: httpx2.Request) -> httpx2.Response:
        repeats = _REPEATS
        while True:
            try:
                return self._http.send(request)
            except (httpx2.TimeoutException, httpx2.ConnectError) as error:
                raise ServerUnreachable(self.url, _words(error, request)) from error
            except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
                if not repeats:
                    raise ServerUnreachable(self.url, _words(error, request)) from error
                repeats -= 1
            except httpx2.RequestError as error:
                raise ServerUnreachable(self.url, _words(error, request)) from error

    def _timeout(self, answer_s: float) -> httpx2.Timeout:
        return httpx2.Timeout(answer_s, connect=self._connect_s)


def new_idempotency_key() -> str:
    """A fresh key for one start and its repeats."""
    return "k_" + secrets.token_hex(16)


def _part(name: str) -> str:
    """An id as one part of a path."""
    return quote(name, safe="")


def _words(error: httpx2.RequestError, request: httpx2.Request) -> str:
    if isinstance(error, httpx2.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer to {request.method} {request.url.path} in time"
    return str(error) or type(error).__name__

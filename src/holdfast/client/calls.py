"""The calls: one method for each thing that a client asks of a server, for the two clients alike.

Every call may be repeated: reads by nature, stop because it is idempotent, start and steer because they carry an
Idempotency-Key, decisions because they are their own key. So an answer that was lost on the way costs a repeat,
never a second run.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import httpx2

from holdfast.client.errors import BUSY_STATUS, ApiError, Reply, ServerUnreachable, api_error, unexpected
from holdfast.client.stream import Backoff

DEFAULT_URL: Final = "http://127.0.0.1:8484"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
LIMITS: Final = httpx2.Limits(max_connections=1000, max_keepalive_connections=20)
_REPEATS: Final = 2

Record = dict[str, Any]
Answer = TypeVar("Answer")


class Call(NamedTuple):
    """A request, without the server that it goes to."""

    method: str
    path: str
    query: Mapping[str, Any] = {}
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = {}
    longer_s: float = 0.0

    @property
    def parameters(self) -> dict[str, Any]:
        """The query, without what was not given."""
        return given(self.query)

    @property
    def sent_headers(self) -> dict[str, str]:
        """The headers, with the form that we read."""
        return {"Accept": "application/json", **self.headers}


class Calls(ABC, Generic[Answer]):
    """What can be asked. `Answer` is a record, or a coroutine that returns one."""

    @abstractmethod
    def _ask(self, call: Call) -> Answer:
        """Send a call, and again where that may help; the object that was answered."""

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
    ) -> Answer:
        """Start a run; its record.

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
        body = given(
            {
                "input": input,
                "session": session,
                "agent": agent,
                "on_busy": on_busy,
                "on_disconnect": on_disconnect,
                "deadline_s": deadline_s,
                "metadata": metadata,
            }
        )
        return self._ask(Call("POST", "/api/runs", json=body, headers=_key(idempotency_key)))

    def record(self, run: str) -> Answer:
        """A run's record as it is now."""
        return self._ask(Call("GET", run_path(run)))

    def runs(
        self,
        *,
        session: str | None = None,
        state: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Answer:
        """A page of runs, newest first: `{"runs": [...], "next": id or null}`."""
        query = {"session": session, "state": state, "limit": limit, "after": after}
        return self._ask(Call("GET", "/api/runs", query))

    def page(self, run: str, after: int | str = 0, *, limit: int | None = None) -> Answer:
        """What a run's log has after `after` now: `{"events", "head", "state"}`."""
        return self._ask(Call("GET", run_path(run, "/events"), {"after": after, "limit": limit}))

    def edit(self, run: str, input: str) -> Answer:
        """Replace the input of a run that is queued; its record."""
        return self._ask(Call("PATCH", run_path(run), json={"input": input}))

    def stop(self, run: str, *, wait_s: float | None = None) -> Answer:
        """Ask a run to stop; its record, with `wait_s` once it has ended or that time is over."""
        return self._ask(Call("POST", run_path(run, "/stop"), {"wait_s": wait_s}, longer_s=wait_s or 0.0))

    def steer(self, run: str, input: str, *, idempotency_key: str | None = None) -> Answer:
        """Hand an input to an active run, which reads it between two of its steps; its record."""
        path = run_path(run, "/steer")
        return self._ask(Call("POST", path, json={"input": input}, headers=_key(idempotency_key)))

    def decide(self, run: str, decisions: Sequence[Mapping[str, Any]]) -> Answer:
        """Decide about calls that a waiting run asks about, all or a part; its record, with what it `waits_for`."""
        return self._ask(Call("POST", run_path(run, "/decisions"), json={"decisions": list(decisions)}))

    def inspect(self, run: str) -> Answer:
        """Why a run is not finished: what it waits on, since when, and which timers will end that."""
        return self._ask(Call("GET", run_path(run, "/inspect")))

    def workers(self) -> Answer:
        """Who works, and what is served: `{"workers": [...], "agents": [...]}`."""
        return self._ask(Call("GET", "/api/workers"))

    def sessions(self, *, limit: int | None = None, after: str | None = None) -> Answer:
        """A page of sessions, most recently used first: `{"sessions": [...], "next": id or null}`."""
        return self._ask(Call("GET", "/api/sessions", {"limit": limit, "after": after}))

    def session(self, session: str) -> Answer:
        """A session: its messages, its active run, its queue."""
        return self._ask(Call("GET", session_path(session)))

    def stop_session(self, session: str, *, wait_s: float | None = None) -> Answer:
        """Stop what is active in a session; `{"session", "run"}`, the run being null where none was."""
        return self._ask(Call("POST", session_path(session, "/stop"), {"wait_s": wait_s}, longer_s=wait_s or 0.0))

    def forget_session(self, session: str) -> Answer:
        """Stop a session's runs and delete it with its logs; an empty object."""
        return self._ask(Call("DELETE", session_path(session)))


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller said; the server's defaults hold for the rest."""
    return {name: value for name, value in values.items() if value is not None}


def run_path(run: str, rest: str = "") -> str:
    """The path of a run; an id is one part of it, whatever it contains."""
    return f"/api/runs/{quote(run, safe='')}{rest}"


def session_path(session: str, rest: str = "") -> str:
    """The path of a session."""
    return f"/api/sessions/{quote(session, safe='')}{rest}"


def check_url(url: str) -> tuple[str, bool]:
    """The address without its last slash, and whether a proxy of the environment may stand before it.

    Raises:
        ValueError: `url` is no http address.
    """
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is no address such as {DEFAULT_URL}")
    return url.rstrip("/"), parts.hostname not in LOOPBACK  # a proxy cannot reach our loopback


def new_idempotency_key() -> str:
    """A fresh key for one start and its repeats."""
    return "k_" + secrets.token_hex(16)


class Attempts:
    """How often and how long one call may be repeated. It decides; the clients send and sleep."""

    def __init__(self, url: str, call: Call, backoff: Backoff, busy_s: float) -> None:
        """Nothing was sent yet; refusals of a busy server may cost `busy_s` in all."""
        self._url = url
        self._call = call
        self._backoff = backoff
        self._left_s = busy_s
        self._lost = 0
        self._busy = 0

    def answered(self, reply: Reply) -> Record | float:
        """The object that was answered, or how long to wait before the call is repeated.

        Raises:
            ApiError: It was refused, or the answer is not a Holdfast server's.
        """
        if not 200 <= reply.status < 300:
            error = api_error(reply)
            return self._busy_wait_s(error)
        answer: Any = {} if reply.status == 204 else reply.json()
        if not isinstance(answer, dict):
            raise unexpected(reply)
        return answer

    def lost(self, error: httpx2.RequestError | TimeoutError) -> None:
        """Return where the call is to be sent again at once.

        Raises:
            ServerUnreachable: A repeat would not help, or was tried often enough.
        """
        broke = isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError)
        if not broke or isinstance(error, httpx2.ConnectError) or self._lost >= _REPEATS:
            raise ServerUnreachable(self._url, self._words(error)) from error
        self._lost += 1

    def _busy_wait_s(self, error: ApiError) -> float:
        if error.status not in BUSY_STATUS or not error.retryable:
            raise error
        self._busy += 1
        wait_s = max(error.retry_after_s or 0.0, self._backoff.wait_s(self._busy))
        if wait_s > self._left_s or self._busy > self._backoff.attempts:
            raise error
        self._left_s -= wait_s
        return wait_s

    def _words(self, error: httpx2.RequestError | TimeoutError) -> str:
        if isinstance(error, httpx2.ConnectTimeout):
            return "no connection in time"
        if isinstance(error, httpx2.TimeoutException | TimeoutError):
            return f"no answer to {self._call.method} {self._call.path} in time"
        return str(error) or type(error).__name__


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": idempotency_key or new_idempotency_key()}

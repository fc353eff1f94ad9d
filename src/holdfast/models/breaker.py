"""Stops asking an upstream that is broken: one circuit breaker per upstream and process.

    closed     requests pass; `failures` in a row that mean a broken upstream open it
    open       every request fails at once, for `open_s`
    half_open  one request passes as a probe, all others fail at once; its first content closes, its failure opens

A first content lets the others in again, but only a whole answer forgets the failures: an upstream that begins every
answer and ends none would else never be found out.

What counts is what the upstream did: no connection, a lost one, a 5xx, a stream that ends in the middle, silence. Not a
4xx, which is the caller's; nor a 429, which says that the upstream works, and when to come back: to count it would turn
one key's rate limit into an outage for all. Nor garbage, nor an answer that took longer than `model_request_s`: both
may be the prompt's doing. A stop counts neither way and gives the probe's place back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.models import Model
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.wrapper import WrapperModel

from holdfast.models.errors import ModelBreakerOpen, ModelStalled, ModelTruncated

State = Literal["closed", "open", "half_open"]

BREAKERS_MAX: Final = 256  # an agent that makes a model with a URL of its own for each run must not fill the memory


class Breaker:
    """The state of one upstream. Changed on the loop, read from any thread."""

    def __init__(
        self, upstream: str, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start closed.

        Args:
            upstream: Its name, for errors and facts.
            failures: How many in a row open it.
            open_s: How long it stays open before a probe.
            clock: Seconds that only grow.
        """
        self.upstream = upstream
        self._limit = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._probe_at: float | None = None  # set while not closed: from then on a probe may pass
        self._probe: Pass | None = None

    @property
    def state(self) -> State:
        """Where it stands now."""
        if self._probe_at is None:
            return "closed"
        return "half_open" if self._probe is not None or self._clock() >= self._probe_at else "open"

    @property
    def opens_in_s(self) -> float:
        """Until a probe may pass; 0 where one may now, or is under way."""
        probe_at = self._probe_at
        return 0.0 if probe_at is None else max(0.0, probe_at - self._clock())

    def admit(self, model_name: str) -> Pass:
        """Let one request through.

        Raises:
            ModelBreakerOpen: Not this one.
        """
        passed = Pass(self)
        if self._probe_at is not None:
            if self._probe is not None or self._clock() < self._probe_at:
                raise ModelBreakerOpen(model_name, self.upstream, self._failures, self.opens_in_s)
            self._probe = passed
        return passed

    def would_admit(self, in_s: float) -> bool:
        """Whether a request may pass in so many seconds, as far as it is known."""
        return self._probe_at is None or (self._probe is None and self.opens_in_s <= in_s)

    def facts(self) -> dict[str, Any]:
        """For /api/workers."""
        return {
            "upstream": self.upstream,
            "state": self.state,
            "failures": self._failures,
            "opens_in_s": round(self.opens_in_s, 1),
        }

    def _content(self, passed: Pass) -> None:
        if passed is self._probe:
            self._probe = self._probe_at = None

    def _succeeded(self, passed: Pass) -> None:
        self._content(passed)
        if self._probe_at is None:  # an answer that began before the failures says nothing about now
            self._failures = 0

    def _failed(self, passed: Pass) -> None:
        self._failures += 1
        if passed is self._probe or (self._probe_at is None and self._failures >= self._limit):
            self._probe = None
            self._probe_at = self._clock() + self._open_s

    def _left(self, passed: Pass) -> None:
        if passed is self._probe:
            self._probe = None


class Pass:
    """One request that was let through; its first verdict counts, and without one it gives the probe's place back."""

    def __init__(self, breaker: Breaker) -> None:
        """Belong to `breaker`."""
        self._breaker = breaker
        self._done = False

    def __enter__(self) -> Self:
        """The request begins."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The request is over, stopped or refused by a reason of the caller's if nothing was said before."""
        if not self._done:
            self._done = True
            self._breaker._left(self)

    def content(self) -> None:
        """The upstream has begun to answer."""
        if not self._done:
            self._breaker._content(self)

    def succeeded(self) -> None:
        """The answer is whole."""
        if not self._done:
            self._done = True
            self._breaker._succeeded(self)

    def failed(self, error: BaseException) -> None:
        """The request failed; counts if the upstream is to blame."""
        if not self._done and is_upstreams(error):
            self._done = True
            self._breaker._failed(self)


class Breakers:
    """Every upstream that this process has asked."""

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the limits; each breaker is made when its upstream is first asked."""
        self._failures = failures
        self._open_s = open_s
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Breaker] = {}

    def of(self, upstream: str) -> Breaker:
        """The breaker of that upstream; past 256 the one that was made first is forgotten."""
        with self._lock:
            breaker = self._known.get(upstream)
            if breaker is None:
                if len(self._known) >= BREAKERS_MAX:
                    self._known.pop(next(iter(self._known)))
                breaker = self._known[upstream] = Breaker(upstream, self._failures, self._open_s, self._clock)
            return breaker

    def facts(self) -> list[dict[str, Any]]:
        """Each breaker's state, those that are not closed first; at most 32 of them."""
        with self._lock:
            found = [breaker.facts() for breaker in self._known.values()]
        return sorted(found, key=lambda facts: facts["state"] == "closed")[:32]


def upstream_of(model: Model) -> str:
    """What fails together: the host and port of a model's client with its provider, else provider and model."""
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, FallbackModel):  # it answers where its first model's upstream does not
        return model.model_id
    url = urlsplit(model.base_url or "")
    try:
        where = f"{url.hostname}:{url.port}" if url.port else url.hostname or ""
    except ValueError:  # a port that is no number
        where = url.netloc
    return f"{where} {model.system}" if where else model.model_id


def is_upstreams(error: BaseException) -> bool:
    """Whether a failure means that the upstream is broken; see the module."""
    if isinstance(error, ModelStalled):
        return error.code != "model_request_timeout"
    if isinstance(error, ModelHTTPError):
        return error.status_code >= 500
    if isinstance(error, BaseExceptionGroup):  # of a FallbackModel: all that it could ask
        return all(is_upstreams(each) for each in error.exceptions)
    if isinstance(error, ModelConnectionError):
        return error.phase != "pool"  # that was our own limit on connections
    return isinstance(error, ModelTruncated)

"""A model that fails is replaced only where that was configured, never silently, and each way has its own limits."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters

from holdfast.config.settings import Settings
from holdfast.models import (
    Breakers,
    GuardedModel,
    ModelBreakerOpen,
    ModelClient,
    ModelGuard,
    ModelLimits,
    ModelStalled,
    RequestScope,
    in_scope,
)
from holdfast.ports.agent import AgentEvent, Degraded, ModelRequested, ModelRetried
from holdfast.ports.probe import Probe, enter
from holdfast.rehearsal import RehearsalServer

SETTINGS = Settings(
    model_connect_s=2.0,
    model_first_content_s=4.0,
    model_idle_s=4.0,
    model_request_s=7.0,
    model_retries=1,
    breaker_failures=3,
    breaker_open_s=60,
)
IMPATIENT = {"model_first_content_s": 0.4, "model_idle_s": 0.4, "model_request_s": 1.0}
"""For a model that is silent on purpose."""


_clients: list[ModelClient] = []


@pytest_asyncio.fixture(autouse=True)
async def closed() -> AsyncIterator[None]:
    yield
    while _clients:
        await _clients.pop().aclose()


class Way:
    """A guarded model on a server of its own, with another behind it, and what was told."""

    def __init__(self, first: str, second: str = "", **changed: Any) -> None:
        self.settings = SETTINGS.model_copy(update=changed)
        self.client = ModelClient(self.settings, {})
        _clients.append(self.client)
        self.first = self._model("first", first)
        self.now = 0.0
        breakers = Breakers(self.settings.breaker_failures, self.settings.breaker_open_s, lambda: self.now)
        self.guard = ModelGuard(
            ModelLimits.of(self.settings),
            breakers,
            fallback=self._model("second", second) if second else None,
            nonstreaming=self.settings.model_fallback_nonstreaming,
        )
        self.model = GuardedModel(self.first, self.guard.limits, self.guard)
        self.told: list[AgentEvent] = []
        self.probe = Probe()

    def _model(self, name: str, url: str) -> Model:
        model = self.client.resolve(name, url)
        assert model is not None
        return model

    async def ask(self, *lines: str, left_s: float = 60.0) -> str:
        async def tell(event: AgentEvent) -> None:
            self.told.append(event)

        enter(self.probe)
        scope = RequestScope(tell, asyncio.get_running_loop().time() + left_s)
        scope.begin_step()
        messages = [ModelRequest(parts=[UserPromptPart("\n".join(lines))])]
        with in_scope(scope):
            async with asyncio.timeout(8):
                response = await self.model.request(messages, None, ModelRequestParameters())
        return response.text or ""

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]

    def states(self) -> dict[str, str]:
        return {facts["upstream"]: facts["state"] for facts in self.guard.facts()["breakers"]}


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[tuple[RehearsalServer, RehearsalServer]]:
    async with RehearsalServer() as first, RehearsalServer() as second:
        yield first, second


def nowhere() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


Servers = tuple[RehearsalServer, RehearsalServer]


def streamed(server: RehearsalServer) -> bool:
    """Whether the last request was for a stream; the first one is not always sent before its time is up."""
    kept = server.app.stats.snapshot(requests=False)["last_request"]
    return kept is None or b'"stream":true' in bytes(kept)


async def test_a_model_that_cannot_be_reached_is_replaced_and_it_is_said(servers: Servers) -> None:
    """The reader learns which model answers him, and why not the other."""
    way = Way(nowhere(), servers[1].url)
    assert await way.ask("!say from the second") == "from the second"
    (degraded,) = way.of(Degraded)
    assert degraded.what == "model"
    assert "first" in degraded.why
    assert "connect" in degraded.why
    assert "second" in degraded.why
    assert [(e.attempt, e.reason) for e in way.of(ModelRetried)] == [(1, "connect")]
    assert [(e.model, e.attempt) for e in way.of(ModelRequested)] == [("first", 2), ("second", 3)]
    assert way.probe.upstreams_open == 0


@pytest.mark.parametrize("fault", ["!first_token delay=30", "!status code=503 retry_after=0", "!truncate after=0"])
async def test_each_failure_before_the_first_content_is_replaced(servers: Servers, fault: str) -> None:
    """And the second model has its own time: the first one's silence is not on its account."""
    way = Way(servers[0].url, servers[1].url, **IMPATIENT)
    began = time.monotonic()
    with pytest.raises(ModelAPIError):
        await way.ask(fault)
    assert len(way.of(Degraded)) == 1
    assert way.of(ModelRequested)[-1].model == "second"
    assert time.monotonic() - began < 7.0


async def test_the_second_model_gets_the_retries_of_the_first(servers: Servers) -> None:
    """Its own budget, no more and no less."""
    way = Way(nowhere(), servers[1].url)
    assert await way.ask("!status code=503 retry_after=0 times=1", "!say second") == "second"
    assert [e.reason for e in way.of(ModelRetried)] == ["connect", "status_503"]
    with pytest.raises(ModelHTTPError):
        await way.ask("!status code=503 retry_after=0")
    assert servers[1].app.stats.requests == 4


@pytest.mark.parametrize("code", [400, 422])
async def test_a_request_that_was_refused_is_not_sent_elsewhere(servers: Servers, code: int) -> None:
    """It would be refused again, and the other model paid for it."""
    way = Way(servers[0].url, servers[1].url)
    with pytest.raises(ModelHTTPError):
        await way.ask(f"!status code={code}")
    assert way.of(Degraded) == []
    assert servers[1].app.stats.requests == 0


@pytest.mark.parametrize("fault", ["!close after=1", "!stall after=1 for=30", "!truncate after=1"])
async def test_nothing_is_replaced_after_content(servers: Servers, fault: str) -> None:
    """What was shown is the adapter's to withdraw."""
    way = Way(servers[0].url, servers[1].url, model_idle_s=0.4)
    with pytest.raises(ModelAPIError):
        await way.ask(fault)
    assert way.of(Degraded) == []
    assert (servers[0].app.stats.requests, servers[1].app.stats.requests) == (1, 0)


async def test_without_configuration_nothing_is_replaced(servers: Servers) -> None:
    """No silent fallback."""
    way = Way(servers[0].url, **IMPATIENT)
    with pytest.raises(ModelStalled):
        await way.ask("!first_token delay=30")
    assert way.of(Degraded) == []
    assert servers[0].app.stats.requests <= 1  # it may have paused before it was sent


async def test_the_same_model_is_asked_in_one_piece_where_its_stream_is_silent(servers: Servers) -> None:
    """A proxy that swallows streams still passes whole answers; it has all of model_request_s for one."""
    way = Way(servers[0].url, model_fallback_nonstreaming=True, model_first_content_s=0.4)
    assert await way.ask("!first_token delay=0.8", "!say whole") == "whole"
    (degraded,) = way.of(Degraded)
    assert "first without streaming" in degraded.why
    assert not streamed(servers[0])
    assert set(way.states()) == {
        f"127.0.0.1:{servers[0].port} openai",
        f"127.0.0.1:{servers[0].port} openai not streamed",
    }


async def test_the_answer_in_one_piece_is_bounded_too(servers: Servers) -> None:
    """Its own budget, and then an honest error."""
    way = Way(servers[0].url, model_fallback_nonstreaming=True, **IMPATIENT)
    began = time.monotonic()
    with pytest.raises(ModelStalled):
        await way.ask("!first_token delay=30")
    assert 1.4 <= time.monotonic() - began < 5.0
    async with asyncio.timeout(1):
        while servers[0].app.stats.open:
            await asyncio.sleep(0.002)
    assert servers[0].app.stats.client_disconnects >= 1


async def test_both_fallbacks_are_tried_in_order(servers: Servers) -> None:
    """First what is nearest to what was asked for, then the other model."""
    way = Way(servers[0].url, servers[1].url, model_fallback_nonstreaming=True, **IMPATIENT)
    with pytest.raises(ModelStalled):
        await way.ask("!first_token delay=30")
    assert [e.model for e in way.of(ModelRequested)] == ["first", "second"]
    assert len(way.of(Degraded)) == 2


async def test_stop_in_the_answer_in_one_piece_closes_its_socket(servers: Servers) -> None:
    """It cannot be seen, but it is work that is paid for."""
    way = Way(servers[0].url, model_fallback_nonstreaming=True, model_first_content_s=0.4)
    asking = asyncio.ensure_future(way.ask("!first_token delay=30"))
    async with asyncio.timeout(5):
        while not (way.of(Degraded) and servers[0].app.stats.open == 1 and not streamed(servers[0])):
            await asyncio.sleep(0.002)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert way.probe.upstreams_open == 0
    async with asyncio.timeout(1):
        while servers[0].app.stats.open:
            await asyncio.sleep(0.002)


async def test_an_open_breaker_refuses_at_once_and_asks_nothing(servers: Servers) -> None:
    """Under 50 ms, so that nobody waits for what will not come."""
    way = Way(servers[0].url)
    for _ in range(2):
        with pytest.raises(ModelHTTPError):
            await way.ask("!status code=503 retry_after=0")
    asked = servers[0].app.stats.requests
    assert asked == SETTINGS.breaker_failures, "the retry that would have been the fourth was not sent"
    fastest = 9.0
    for _ in range(5):  # the machine may pause in one of them
        began = time.monotonic()
        with pytest.raises(ModelBreakerOpen) as raised:
            await way.ask("!say hello")
        fastest = min(fastest, time.monotonic() - began)
    assert fastest < 0.05
    assert 0 < raised.value.opens_in_s <= 60
    assert servers[0].app.stats.requests == asked
    assert way.guard.facts()["breakers"][0]["state"] == "open"


async def test_an_open_breaker_goes_straight_to_the_fallback(servers: Servers) -> None:
    """Its failures cost no further time."""
    way = Way(nowhere(), servers[1].url, model_retries=0)
    for _ in range(4):
        assert await way.ask("!say second") == "second"
    assert "breaker is open" in way.of(Degraded)[-1].why
    assert list(way.states().values()) == ["open", "closed"]


async def test_the_upstream_is_found_again_by_one_probe(servers: Servers) -> None:
    """The others fail fast until the probe's first content, then all is as before."""
    way = Way(servers[0].url, model_retries=0)
    for _ in range(3):
        with pytest.raises(ModelHTTPError):
            await way.ask("!status code=500")
    way.now += SETTINGS.breaker_open_s
    probing = asyncio.ensure_future(way.ask("!first_token delay=1.5", "!say back"))
    async with asyncio.timeout(5):
        while servers[0].app.stats.open != 1:
            await asyncio.sleep(0.002)
    with pytest.raises(ModelBreakerOpen):
        await way.ask("!say me too")
    assert await probing == "back"
    assert await way.ask("!say me too") == "me too"
    assert list(way.states().values()) == ["closed"]


async def test_stop_of_a_probe_closes_its_socket_and_lets_the_next_one_probe(servers: Servers) -> None:
    """Else one impatient user would keep the upstream shut for all."""
    way = Way(servers[0].url, model_retries=0)
    for _ in range(3):
        with pytest.raises(ModelHTTPError):
            await way.ask("!status code=500")
    way.now += SETTINGS.breaker_open_s
    probing = asyncio.ensure_future(way.ask("!slow_headers for=30"))
    async with asyncio.timeout(5):
        while servers[0].app.stats.open != 1:
            await asyncio.sleep(0.002)
    probing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probing
    async with asyncio.timeout(1):
        while servers[0].app.stats.open:
            await asyncio.sleep(0.002)
    assert await way.ask("!say back") == "back"


async def test_the_first_models_key_is_not_sent_to_another_server(servers: Servers) -> None:
    """A key belongs to the server it was given for."""
    keys = {"HOLDFAST_MODEL_KEY": "secret"}

    def key(url: str, **environ: str) -> str:
        settings = Settings(model="m", model_url=servers[0].url, model_fallback="o", model_fallback_url=url)
        _clients.append(ModelClient(settings, {**keys, **environ}))
        model = _clients[-1].fallback()
        assert model is not None
        return str(model.client.api_key)  # type: ignore[attr-defined]

    assert key(servers[1].url) == "none"
    assert key(servers[0].url) == "secret"
    assert key(servers[1].url, HOLDFAST_MODEL_FALLBACK_KEY="other") == "other"
    assert ModelClient(Settings(), {}).fallback() is None

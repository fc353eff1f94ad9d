"""Every model request ends, whatever the upstream does, and says why."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from email.utils import formatdate

import psutil
import pytest
import pytest_asyncio
from pydantic_ai.exceptions import ModelAPIError, ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import ModelRequest, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.test import TestModel

from holdfast.app.upstream import probe_model
from holdfast.config.settings import Settings
from holdfast.models import (
    GuardedModel,
    ModelClient,
    ModelGuard,
    ModelLimits,
    ModelStalled,
    ModelTruncated,
    RequestScope,
    in_scope,
)
from holdfast.models.guard import _retry_in
from holdfast.ports.agent import AgentEvent, ModelRetried
from holdfast.ports.probe import Probe, enter
from holdfast.rehearsal import RehearsalServer

SETTINGS = Settings(
    model_connect_s=0.3, model_first_content_s=0.3, model_idle_s=0.3, model_request_s=0.6, model_retries=2
)
PATIENT = SETTINGS.model_copy(
    update={"model_connect_s": 2.0, "model_first_content_s": 3.0, "model_idle_s": 3.0, "model_request_s": 6.0}
)
"""For what is no matter of limits: a machine that pauses must not look like a model that does."""


@pytest_asyncio.fixture
async def server() -> AsyncIterator[RehearsalServer]:
    async with RehearsalServer() as server:
        yield server


@pytest_asyncio.fixture
async def client() -> AsyncIterator[ModelClient]:
    client = ModelClient(PATIENT, {})
    yield client
    await client.aclose()


class Asked:
    """A guarded model, its probe, and what its guard told."""

    def __init__(self, client: ModelClient, url: str, settings: Settings = PATIENT) -> None:
        model = client.resolve("rehearsal", url)
        assert model is not None
        self.model = GuardedModel(model, ModelLimits.of(settings))
        self.probe = Probe()
        self.told: list[AgentEvent] = []
        self.text: list[str] = []

    async def ask(self, text: str, left_s: float = 60.0) -> str:
        async def tell(event: AgentEvent) -> None:
            self.told.append(event)

        enter(self.probe)
        scope = RequestScope(tell, asyncio.get_running_loop().time() + left_s)
        messages = [ModelRequest(parts=[UserPromptPart(text)])]
        with in_scope(scope):
            async with (
                asyncio.timeout(8),
                self.model.request_stream(messages, None, ModelRequestParameters()) as stream,
            ):
                async for _ in stream:
                    self.text.append(stream.get().text or "")
        return stream.get().text or ""


STALLS = {
    "!first_token delay=30": "model_first_content_timeout",
    "!slow_headers for=30": "model_first_content_timeout",
    "!comments after=0 for=30 every=0.05": "model_first_content_timeout",
    "!stall after=2 for=30": "model_idle_timeout",
    "!comments after=2 for=30 every=0.05": "model_idle_timeout",
    "!tokens n=1000 rate=20": "model_request_timeout",
}


@pytest.mark.parametrize("script", STALLS)
async def test_each_limit_fires_in_its_time_and_closes_the_socket(
    server: RehearsalServer, client: ModelClient, script: str
) -> None:
    """Keepalives are not progress, and a trickle is no reason to go on for ever."""
    asked = Asked(client, server.url, SETTINGS)
    began = time.monotonic()
    with pytest.raises(ModelStalled) as raised:
        await asked.ask(script)
    took = time.monotonic() - began
    assert raised.value.code == STALLS[script]
    assert raised.value.after_s <= took < raised.value.after_s + 2.0
    assert asked.probe.upstreams_open == 0
    assert asked.probe.fires == STALLS[script].removesuffix("_timeout")
    async with asyncio.timeout(2):
        while server.app.stats.open:
            await asyncio.sleep(0.002)
    assert not [event for event in asked.told if isinstance(event, ModelRetried)], "a stall is not repeated"


async def test_connect_has_a_limit_and_is_repeated() -> None:
    """A host that drops packets does not say no; it says nothing."""
    client = ModelClient(SETTINGS, {})
    with deaf() as port:
        asked = Asked(client, f"http://127.0.0.1:{port}/v1")
        asked.model.limits = asked.model.limits._replace(retries=1)
        began = time.monotonic()
        with pytest.raises(ModelConnectionError) as raised:
            await asked.ask("hi")
        assert raised.value.phase == "connect"
        assert 0.6 <= time.monotonic() - began < 3.0
        assert [e.reason for e in asked.told if isinstance(e, ModelRetried)] == ["connect_timeout"]
    await client.aclose()


async def test_stop_while_connecting_closes_the_socket() -> None:
    """A host that drops packets must not hold a socket of a run that was stopped until the connect's limit."""
    client = ModelClient(SETTINGS.model_copy(update={"model_connect_s": 60.0}), {})
    with deaf() as port:

        def connecting() -> int:
            found = psutil.Process().net_connections("tcp4")
            return sum(bool(c.raddr) and c.raddr.port == port and c.status == psutil.CONN_SYN_SENT for c in found)

        before = connecting()
        asked = Asked(
            client, f"http://127.0.0.1:{port}/v1", SETTINGS.model_copy(update={"model_first_content_s": 60.0})
        )
        asking = asyncio.ensure_future(asked.ask("hi"))
        async with asyncio.timeout(5):
            while connecting() == before:
                await asyncio.sleep(0.01)
        assert (asked.probe.waiting_on, asked.probe.fires) == ("model connect", "model_connect")
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert asked.probe.upstreams_open == 0
        assert connecting() == before
    await client.aclose()


@contextmanager
def deaf() -> Iterator[int]:
    """A port that neither takes nor refuses connections: its backlog is full."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fill = [socket.socket() for _ in range(4)]
        try:
            for one in fill:
                one.setblocking(False)
                one.connect_ex(listening.getsockname())
            yield listening.getsockname()[1]
        finally:
            for one in fill:
                one.close()


async def test_a_refused_connection_is_repeated_then_said(client: ModelClient) -> None:
    """A server that restarts is back in a second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = Asked(client, f"http://127.0.0.1:{port}/v1")
    with pytest.raises(ModelConnectionError):
        await asked.ask("hi")
    retried = [event for event in asked.told if isinstance(event, ModelRetried)]
    assert [(event.attempt, event.reason) for event in retried] == [(1, "connect"), (2, "connect")]
    assert retried[0].wait_ms < retried[1].wait_ms


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500, 503, 529])
async def test_a_status_that_may_pass_is_repeated(server: RehearsalServer, client: ModelClient, code: int) -> None:
    """And the answer of the second attempt is the answer."""
    asked = Asked(client, server.url)
    assert await asked.ask(f"!status code={code} retry_after=0 times=2\n!say fine") == "fine"
    assert [e.reason for e in asked.told if isinstance(e, ModelRetried)] == [f"status_{code}"] * 2
    assert server.app.stats.requests == 3


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
async def test_a_status_that_will_not_pass_is_not_repeated(
    server: RehearsalServer, client: ModelClient, code: int
) -> None:
    """Repeating a bad request only costs time."""
    asked = Asked(client, server.url)
    with pytest.raises(ModelHTTPError):
        await asked.ask(f"!status code={code}")
    assert server.app.stats.requests == 1


async def test_retries_are_counted(server: RehearsalServer, client: ModelClient) -> None:
    """The SDK's own retries are off: three requests are three requests."""
    asked = Asked(client, server.url)
    with pytest.raises(ModelHTTPError):
        await asked.ask("!status code=500 retry_after=0")
    assert server.app.stats.requests == 1 + SETTINGS.model_retries


async def test_a_wait_that_outlasts_the_run_is_not_begun(server: RehearsalServer, client: ModelClient) -> None:
    """Sleeping until the deadline kills the run would hide the true reason."""
    asked = Asked(client, server.url)
    began = time.monotonic()
    with pytest.raises(ModelHTTPError):
        await asked.ask("!status code=429 retry_after=30", left_s=10.0)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "script", ["!close after=2", "!truncate after=2", "!bad_json after=2", "!error_in_stream after=2"]
)
async def test_nothing_is_repeated_after_content(server: RehearsalServer, client: ModelClient, script: str) -> None:
    """What a reader has seen cannot be taken back here."""
    asked = Asked(client, server.url)
    with pytest.raises(ModelAPIError):
        await asked.ask(script)
    assert server.app.stats.requests == 1
    assert asked.text[-1] == "t1 t2 "
    assert asked.probe.upstreams_open == 0


async def test_a_connection_that_breaks_before_content_is_repeated(
    server: RehearsalServer, client: ModelClient
) -> None:
    """An idle connection that the server closed in that moment is the common case."""
    asked = Asked(client, server.url)
    with pytest.raises(ModelConnectionError):
        await asked.ask("!close after=0")
    assert server.app.stats.requests == 3


async def test_a_truncated_stream_is_no_answer_for_any_openai_model(
    server: RehearsalServer, client: ModelClient
) -> None:
    """Also for a user's own model, whose profile does not ask for a finish reason."""
    asked = Asked(client, server.url)
    inner = asked.model.wrapped
    inner._profile = {**inner.profile, "openai_chat_streaming_requires_finish_reason": False}  # type: ignore[attr-defined]
    inner.__dict__.pop("profile", None)
    with pytest.raises(ModelTruncated):
        await asked.ask("!truncate after=2")


async def test_our_own_slowness_is_not_the_models_silence(server: RehearsalServer, client: ModelClient) -> None:
    """A store that is down for longer than the idle limit must not end runs as stalled."""
    settings = SETTINGS.model_copy(update={"model_request_s": 0.5})
    asked = Asked(client, server.url, settings)
    messages = [ModelRequest(parts=[UserPromptPart("!tokens n=5 rate=1000")])]
    async with asked.model.request_stream(messages, None, ModelRequestParameters()) as stream:
        async for _ in stream:
            await asyncio.sleep(0.15)
    assert stream.get().text == "t1 t2 t3 t4 t5 "


async def test_a_request_that_does_not_stream_is_guarded_too(server: RehearsalServer, client: ModelClient) -> None:
    """Always streams: a plain request that hangs looks like one that thinks."""
    asked = Asked(client, server.url, SETTINGS)
    with pytest.raises(ModelStalled):
        await asked.model.request(
            [ModelRequest(parts=[UserPromptPart("!stall after=1 for=30")])], None, ModelRequestParameters()
        )


async def test_a_users_fallback_model_falls_back_on_a_stall(server: RehearsalServer, client: ModelClient) -> None:
    """Our errors are the library's errors, so that its own means against them go on working."""
    asked = Asked(client, server.url, SETTINGS)
    both = GuardedModel(FallbackModel(asked.model, TestModel(custom_output_text="other")), asked.model.limits)
    both.limits = both.limits._replace(first_content_s=3.0, request_s=5.0)
    response = await both.request(
        [ModelRequest(parts=[UserPromptPart("!first_token delay=30")])], None, ModelRequestParameters()
    )
    assert response.text == "other"


async def test_the_probe_knows_what_is_waited_for(server: RehearsalServer, client: ModelClient) -> None:
    """inspect answers while it hangs, not after."""
    settings = SETTINGS.model_copy(update={"model_idle_s": 5.0, "model_request_s": 9.0})
    asked = Asked(client, server.url, settings)
    asking = asyncio.ensure_future(asked.ask("!stall after=1 for=30"))
    async with asyncio.timeout(5):
        while not asked.text:
            await asyncio.sleep(0.002)
    await asyncio.sleep(0.05)
    facts = asked.probe.snapshot()
    assert (facts["waiting_on"], facts["fires"], facts["upstreams_open"]) == ("model", "model_idle", 1)
    assert 0 < facts["fires_in_ms"] <= 5000
    assert facts["last_upstream_byte_ms"] is not None
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert asked.probe.upstreams_open == 0


async def test_a_server_is_probed_before_anything_runs(server: RehearsalServer) -> None:
    """Start-up says whether a model answers, and whether it is only rehearsed."""
    reached = await probe_model(server.url)
    assert reached.reachable
    assert reached.rehearsal
    nobody = await probe_model("http://127.0.0.1:9/v1")
    assert not nobody.reachable
    assert "127.0.0.1:9" in nobody.detail


async def test_retry_after_is_understood_in_both_forms() -> None:
    """Seconds, or a date as HTTP writes it; a date that has passed means now."""

    def wait(value: str) -> float | None:
        error = ModelHTTPError.for_category(None, status_code=429, model_name="m", headers={"Retry-After": value})
        return _retry_in(route, error, 1)

    limits = ModelLimits.of(SETTINGS)
    route = ModelGuard(limits).routes(TestModel(), limits)[0]
    assert wait("7") == 7.0
    inside = wait(formatdate(time.time() + 90, usegmt=True))
    assert inside is not None
    assert 80 < inside <= 91
    assert wait(formatdate(time.time() - 90, usegmt=True)) == 0.0

    async def nobody(event: AgentEvent) -> None:
        raise AssertionError(event)

    with in_scope(RequestScope(nobody, asyncio.get_running_loop().time() + 60)):
        assert wait("59") == 59.0
        assert wait("61") is None
        assert wait(formatdate(time.time() + 90, usegmt=True)) is None

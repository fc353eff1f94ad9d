"""A broken upstream is not asked, and a healed one is found again, whoever stops meanwhile."""

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from holdfast.models.breaker import BREAKERS_MAX, Breaker, Breakers, is_upstreams, upstream_of
from holdfast.models.errors import ModelBadResponse, ModelBreakerOpen, ModelStalled, ModelTruncated

LOST = ModelConnectionError("m", "gone", phase="read")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Rig:
    def __init__(self, failures: int = 3, open_s: float = 30.0) -> None:
        self.clock = Clock()
        self.breaker = Breaker("here:1 openai", failures, open_s, self.clock)

    def fail(self, times: int = 1, error: Exception = LOST) -> None:
        for _ in range(times):
            with self.breaker.admit("m") as passed:
                passed.failed(error)

    def refused(self) -> ModelBreakerOpen:
        with pytest.raises(ModelBreakerOpen) as raised:
            self.breaker.admit("m")
        return raised.value


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_failures_in_a_row_open_it_and_a_whole_answer_forgets_them(rig: Rig) -> None:
    """Now and then a request fails; that is no reason to stop asking."""
    for _ in range(10):
        rig.fail(2)
        with rig.breaker.admit("m") as passed:
            passed.content()
            passed.succeeded()
    assert rig.breaker.state == "closed"
    rig.fail(3)
    error = rig.refused()
    assert (rig.breaker.state, error.failures, error.opens_in_s) == ("open", 3, 30.0)
    assert "here:1 openai" in str(error)


def test_one_probe_passes_and_its_answer_closes(rig: Rig) -> None:
    """A hundred runs that wait for a healed upstream must not fall upon it at once."""
    rig.fail(3)
    rig.clock.now += 30
    assert rig.breaker.state == "half_open"
    with rig.breaker.admit("m") as probe:
        assert "another request" in str(rig.refused())
        assert not rig.breaker.would_admit(1000)
        probe.content()  # a long answer does not keep the others waiting
        with rig.breaker.admit("m"):
            pass
        probe.succeeded()
    assert rig.breaker.facts() == {
        "upstream": "here:1 openai",
        "state": "closed",
        "failures": 0,
        "opens_in_s": 0.0,
    }


def test_a_probe_that_fails_opens_again(rig: Rig) -> None:
    """And for as long as before."""
    rig.fail(3)
    rig.clock.now += 30
    rig.fail()
    assert rig.refused().opens_in_s == 30.0


def test_a_probe_that_begins_and_breaks_opens_again(rig: Rig) -> None:
    """An upstream that begins every answer and ends none is broken."""
    rig.fail(3)
    rig.clock.now += 30
    with rig.breaker.admit("m") as probe:
        probe.content()
        probe.failed(LOST)
    assert rig.breaker.state == "open"


def test_a_probe_that_is_stopped_gives_its_place_back(rig: Rig) -> None:
    """The user's Stop says nothing about the upstream; without this the breaker would stay half-open for ever."""
    rig.fail(3)
    rig.clock.now += 30
    with rig.breaker.admit("m"):
        pass
    assert rig.breaker.state == "half_open"
    rig.breaker.admit("m")


@pytest.mark.parametrize("error", [ModelHTTPError(400, "m"), ModelHTTPError(429, "m"), ModelBadResponse("m", "?")])
def test_what_the_caller_did_counts_neither_way(rig: Rig, error: Exception) -> None:
    """One user's bad requests, or his rate limit, must not shut the others out."""
    rig.fail(2)
    rig.fail(10, error)
    assert rig.breaker.state == "closed"
    rig.fail()
    assert rig.breaker.state == "open"
    rig.clock.now += 30
    rig.fail(1, error)
    assert rig.breaker.state == "half_open"


def test_old_answers_say_nothing_about_now(rig: Rig) -> None:
    """An answer that began before the upstream broke must not close what its breaking opened."""
    old = rig.breaker.admit("m")
    rig.fail(3)
    old.content()
    old.succeeded()
    assert rig.breaker.state == "open"


@given(st.lists(st.sampled_from(["admit", "content", "ok", "fail", "leave", "time"]), max_size=60))
def test_at_most_one_probe_and_never_shut_for_ever(steps: list[str]) -> None:
    """Whatever the order of requests and their ends: once all have ended and time has passed, one may pass."""
    rig = Rig(failures=2, open_s=5.0)
    passes = []
    for step in steps:
        match step:
            case "admit":
                before = rig.breaker.state
                try:
                    passes.append(rig.breaker.admit("m"))
                except ModelBreakerOpen:
                    assert before != "closed"
                else:
                    assert before != "open"
            case "time":
                rig.clock.now += 3
            case _ if passes:
                first = passes[0]
                if step == "content":
                    first.content()
                    continue
                passes.pop(0)
                with first:
                    if step == "ok":
                        first.succeeded()
                    elif step == "fail":
                        first.failed(LOST)
    for left in passes:
        with left:
            pass
    rig.clock.now += 5
    assert rig.breaker.would_admit(0)
    rig.breaker.admit("m")


def test_which_failures_are_the_upstreams() -> None:
    """Broken is: not there, gone, silent, cut short, 5xx."""
    theirs = [
        LOST,
        ModelConnectionError("m", "refused", phase="connect"),
        ModelHTTPError(500, "m"),
        ModelHTTPError(529, "m", in_stream=True),
        ModelTruncated("m"),
        ModelStalled("m", "model_first_content_timeout", 1),
        ModelStalled("m", "model_idle_timeout", 1),
    ]
    assert all(is_upstreams(error) for error in theirs)
    ours = [
        ModelConnectionError("m", "our own pool is full", phase="pool"),
        ModelHTTPError(408, "m"),
        ModelStalled("m", "model_request_timeout", 1),
        ModelBadResponse("m", "?"),
    ]
    assert not any(is_upstreams(error) for error in ours)


def test_models_of_one_server_share_a_breaker_and_others_do_not() -> None:
    """The upstream is what fails together: a host and port, asked through one provider."""
    http = httpx2.AsyncClient()  # never used, so nothing to close

    def openai(name: str, url: str) -> OpenAIChatModel:
        return OpenAIChatModel(name, provider=OpenAIProvider(base_url=url, api_key="k", http_client=http))

    one = upstream_of(openai("a", "http://h:1/v1"))
    assert one == upstream_of(WrapperModel(openai("b", "http://h:1/v2"))) == "h:1 openai"
    assert one != upstream_of(openai("a", "http://h:2/v1"))
    assert upstream_of(TestModel()) == "test:test"
    both = FallbackModel(openai("a", "http://h:1/v1"), TestModel())
    assert upstream_of(both) != one, "its second model answers when the first one's server is broken"


def test_breakers_are_bounded_and_name_the_broken_first() -> None:
    """An agent that makes up a URL for each run fills no memory."""
    breakers = Breakers(1, 30.0)
    for number in range(BREAKERS_MAX + 10):
        breakers.of(str(number))
    with breakers.of("bad").admit("m") as passed:
        passed.failed(LOST)
    facts = breakers.facts()
    assert len(facts) == 32
    assert (facts[0]["upstream"], facts[0]["state"]) == ("bad", "open")

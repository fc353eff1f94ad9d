"""The kit finds each way in which a server of chat completions hangs, by name, in bounded time, and no other."""

from __future__ import annotations

import pytest

from holdfast.probe import Report
from tests.probe import chat_servers
from tests.probe.finding import all_found, failures, found, outcomes

NATIVE = ("run.", "resume.", "reader.", "session.", "stop.")


async def test_sound_server_passes_all_that_can_be_tried():
    """A kit that fails everybody finds nothing: what is broken below is sound here."""
    async with chat_servers.Sound() as server:
        report = await found(server.url, upstream_stats=server.url, timeout_s=10.0)
    assert failures(report) == {}
    assert report.ok
    skipped = {name for name, outcome in outcomes(report).items() if outcome == "skipped"}
    scripted = {"chat.disconnect_early", "chat.supersede_silent", "server.health"}
    assert skipped - scripted == {name for name in outcomes(report) if name.startswith(NATIVE)}


BROKEN = [
    (chat_servers.NeverEnds, "chat.normal", "still open, without [DONE]"),
    (chat_servers.NeverCloses, "chat.normal", "after [DONE] the stream is still open"),
    (chat_servers.Cuts, "chat.normal", "no chunk has a finish_reason; no [DONE]"),
    (chat_servers.Deadlocks, "chat.supersede", "B hangs"),
    (chat_servers.LeavesTheFirstHanging, "chat.supersede", "A neither ends nor goes on"),
    (chat_servers.MixesSessions, "chat.sessions_apart", "a prompt in another session ended the first"),
]


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """What the kit says of each broken server."""
    return all_found((broken, scenario) for broken, scenario, _ in BROKEN)


@pytest.mark.timeout(40)
@pytest.mark.parametrize(("broken", "scenario", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_server_is_found_by_the_scenario_that_it_breaks(
    reports: dict[str, Report], broken: type, scenario: str, words: str
):
    """A conformance kit that cannot fail proves nothing."""
    report = reports[broken.__name__]
    assert list(failures(report)) == [scenario]
    assert words in failures(report)[scenario]
    assert not report.ok
    (result,) = report.results
    assert result.expected
    assert result.promise


async def test_server_that_ignores_disconnects_is_found_where_the_model_can_be_asked():
    """Nobody but the model sees that it works for nobody; without its word the kit says that it does not know."""
    async with chat_servers.IgnoresDisconnects() as server:
        told = await found(server.url, "chat.disconnect", upstream_stats=server.url)
        guessed = await found(server.url, "chat.disconnect")
    assert "the model still has 1 more answer(s) open" in failures(told)["chat.disconnect"]
    assert "not known without --upstream-stats" in guessed.results[0].seen


async def test_server_that_serves_a_left_prompt_before_the_next_is_found_from_outside():
    """Where a session waits for whoever left, its next prompt tells."""

    class Waits(chat_servers.Deadlocks):
        def left(self, request: object) -> bool:
            return False

    async with Waits() as server:
        report = await found(server.url, "chat.disconnect")
    assert "the next prompt of its session is not answered" in failures(report)["chat.disconnect"]


async def test_server_without_sessions_is_skipped_unless_they_were_asked_for():
    """Two answers beside each other are no hang; passed they are not, either."""
    names = ("chat.supersede", "chat.five_one_session", "chat.sessions_apart")
    async with chat_servers.KnowsNoSessions() as server:
        report = await found(server.url, *names)
        asked = await found(server.url, "chat.supersede", sessions=True)
    assert outcomes(report) == dict.fromkeys(names, "skipped")
    assert "knows sessions" in report.results[0].seen
    assert not report.ok, "nothing was proved"
    assert "A goes on beside it" in failures(asked)["chat.supersede"]


async def test_server_that_a_scenario_has_hung_is_named_once_and_left_alone():
    """The first failure is the finding; thirty more that follow from it would hide it, a limit each."""
    async with chat_servers.LocksUp() as server:
        report = await found(server.url, "chat.normal", "chat.supersede", "chat.five", "server.still_answers")
    assert list(failures(report)) == ["chat.supersede"]
    assert [r.seen[:64] for r in report.results[2:]] == [
        "after chat.supersede no prompt is answered any more: POST /v1/ch"
    ] * 2
    assert report.complete


def _only_failure(report: Report, scenario: str) -> None:
    assert list(failures(report)) == [scenario]
    assert {r.outcome for r in report.results if r.name != scenario} <= {"passed", "skipped"}
    assert report.took_ms < 10_000


async def test_server_that_takes_prompts_and_never_answers_is_found_within_two_waits():
    """What asks the most patient server must not be more patient than it was told."""
    async with chat_servers.NeverAnswers() as server:
        report = await found(server.url)
    _only_failure(report, "chat.normal")
    assert report.prompts == 2


async def test_server_that_accepts_and_says_nothing_is_found_without_a_prompt():
    """A connection that is taken is no sign of life."""
    async with chat_servers.Silent() as server:
        report = await found(server.url)
    _only_failure(report, "server.answers")
    assert report.prompts == 0

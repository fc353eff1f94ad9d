"""The kit finds each way in which a server of chat completions hangs, by name, in bounded time, and no other."""

from __future__ import annotations

import pytest

from holdfast.probe import Report
from holdfast.rehearsal import RehearsalServer
from tests.probe import chat_servers
from tests.probe.finding import Case, all_found, assert_found, failures, outcomes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

NATIVE = ("run.", "resume.", "reader.", "session.", "stop.")
SESSIONS = ("chat.supersede", "chat.five_one_session", "chat.sessions_apart")
BROKEN = [
    (chat_servers.NeverEnds, "chat.normal", "still open, without [DONE]"),
    (chat_servers.NeverCloses, "chat.normal", "after [DONE] the stream is still open"),
    (chat_servers.Cuts, "chat.normal", "no chunk has a finish_reason; no [DONE]"),
    (chat_servers.Deadlocks, "chat.supersede", "B hangs"),
    (chat_servers.LeavesTheFirstHanging, "chat.supersede", "A neither ends nor goes on"),
    (chat_servers.MixesSessions, "chat.sessions_apart", "a prompt in another session ended the first"),
    (chat_servers.ServesTheLeftFirst, "chat.disconnect", "the next prompt of its session is not answered"),
]
CASES = {
    **{broken.__name__: Case(broken, (scenario,)) for broken, scenario, _ in BROKEN},
    "sound": Case(chat_servers.Sound, options={"timeout_s": 10.0}, stats=True),
    "prompt only": Case(chat_servers.TakesPromptOnly, ("chat.normal", "chat.supersede"), {"timeout_s": 10.0}),
    "sheds": Case(chat_servers.Sheds, ("chat.normal", "chat.whole", "chat.bad_body", "chat.five"), {"timeout_s": 10.0}),
    "left, told": Case(chat_servers.IgnoresDisconnects, ("chat.disconnect",), stats=True),
    "left, guessed": Case(chat_servers.IgnoresDisconnects, ("chat.disconnect",)),
    "no sessions": Case(chat_servers.KnowsNoSessions, SESSIONS),
    "no sessions, asked for": Case(chat_servers.KnowsNoSessions, ("chat.supersede",), {"sessions": True}),
    "locks up": Case(chat_servers.LocksUp, ("chat.normal", "chat.supersede", "chat.five", "server.still_answers")),
    "never answers": Case(chat_servers.NeverAnswers),
    "never answers, cut short": Case(chat_servers.NeverAnswers, options={"timeout_s": 10.0, "total_s": 1.0}),
    "silent": Case(chat_servers.Silent),
    "rehearsal": Case(
        RehearsalServer,
        ("chat.disconnect_early", "chat.supersede_silent", "run.log", "stop"),
        {"timeout_s": 3.0},
    ),
}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    """What the kit says in each case."""
    return all_found(CASES)


@pytest.mark.parametrize(("broken", "scenario", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_server_is_found_by_the_scenario_that_it_breaks(
    reports: dict[str, Report], broken: type, scenario: str, words: str
):
    """A conformance kit that cannot fail proves nothing."""
    assert_found(reports[broken.__name__], scenario, words)


def test_sound_server_passes_all_that_can_be_tried(reports: dict[str, Report]):
    """A kit that fails everybody finds nothing: what is broken above is sound here."""
    report = reports["sound"]
    assert failures(report) == {}
    assert report.ok
    skipped = {name for name, outcome in outcomes(report).items() if outcome == "skipped"}
    scripted = {"chat.disconnect_early", "chat.supersede_silent", "server.health"}
    assert skipped - scripted == {name for name in outcomes(report) if name.startswith(NATIVE)}


def test_server_that_takes_prompts_in_its_own_form_is_understood(reports: dict[str, Report]):
    """The server of document 4 takes `prompt`; a kit that cannot talk to it finds nothing."""
    report = reports["prompt only"]
    assert set(outcomes(report).values()) == {"passed"}
    assert "it takes `prompt`, not `messages`" in report.results[0].seen


def test_server_that_sheds_load_has_not_hung(reports: dict[str, Report]):
    """429 is an answer; nothing was proved by it, either."""
    report = reports["sheds"]
    assert set(outcomes(report).values()) == {"skipped"}
    assert all("refused a prompt with 429" in result.seen for result in report.results)
    assert not report.ok


def test_server_that_ignores_disconnects_is_found_where_the_model_can_be_asked(reports: dict[str, Report]):
    """Nobody but the model sees that it works for nobody; without its word the kit says that it does not know."""
    assert "the model still has 1 more answer(s) open" in failures(reports["left, told"])["chat.disconnect"]
    assert "not known without --upstream-stats" in reports["left, guessed"].results[0].seen


def test_server_without_sessions_is_skipped_unless_they_were_asked_for(reports: dict[str, Report]):
    """Two answers beside each other are no hang; passed they are not, either."""
    report = reports["no sessions"]
    assert outcomes(report) == dict.fromkeys(SESSIONS, "skipped")
    assert "knows sessions" in report.results[0].seen
    assert not report.ok, "nothing was proved"
    assert "A goes on beside it" in failures(reports["no sessions, asked for"])["chat.supersede"]


def test_server_that_a_scenario_has_hung_is_named_once_and_left_alone(reports: dict[str, Report]):
    """The first failure is the finding; thirty more that follow from it would hide it, a limit each."""
    report = reports["locks up"]
    assert list(failures(report)) == ["chat.supersede"]
    assert len(report.results) == 4
    for result in report.results[2:]:
        assert result.outcome == "skipped"
        assert result.seen.startswith("after chat.supersede a plain prompt is not answered either")
    assert report.complete


def test_server_that_takes_prompts_and_never_answers_is_found_within_two_waits(reports: dict[str, Report]):
    """What asks a server must not be more patient than it was told."""
    report = reports["never answers"]
    assert list(failures(report)) == ["chat.normal"]
    assert {r.outcome for r in report.results if r.name not in ("chat.normal", "server.answers")} == {"skipped"}
    assert report.prompts == 2


def test_whole_probe_has_a_limit_that_is_said(reports: dict[str, Report]):
    """What is left of time is told as cut short, never as passed."""
    report = reports["never answers, cut short"]
    assert "all of it may take 1 s" in report.cut
    assert not report.ok
    assert not report.complete


def test_server_that_accepts_and_says_nothing_is_found_without_a_prompt(reports: dict[str, Report]):
    """A connection that is taken is no sign of life."""
    report = reports["silent"]
    assert list(failures(report)) == ["server.answers"]
    assert {r.outcome for r in report.results[1:]} == {"skipped"}
    assert report.prompts == 0


def test_rehearsal_model_alone_is_judged_by_what_it_is(reports: dict[str, Report]):
    """It has no sessions and no runs: those are skipped, each with its reason; what it has is proved."""
    report = reports["rehearsal"]
    reasons = {result.name: result.seen for result in report.results if result.outcome == "skipped"}
    assert failures(report) == {}
    assert "the model saw its connection closed" in report.results[0].seen
    assert "knows sessions" in reasons.pop("chat.supersede_silent")
    assert set(reasons.values()) == {"the server has no native API of Holdfast"}

"""The five scenarios of document 4, over HTTP, on the processes that `holdfast serve` starts."""

import time
from collections.abc import Callable

import psutil
import pytest

from tests.scenarios.conftest import Serve
from tests.scenarios.support import CLEANLY, TIMED_OUT, Chat, check_strict, started, told, words
from tests.system.support import System, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

GAP_S = 0.1
COOPERATIVE_S = 2.5
BLOCKED_S = 3.5
ENDS_WITHIN_S = 3.0
ANSWER_S = 1.0
BUSY_S = 1.0  # what a busy machine may take from a start to the first token


@pytest.mark.parametrize("form", ["logfmt", "json"])
def test_1_a_normal_stream_starts_and_ends(serve: Serve, form: str):
    """Its lines are there, in order, in both formats, and none says that it was cancelled."""
    system = serve(HOLDFAST_LOG_FORMAT=form)
    chat = Chat(system, "!say hello").end()
    assert (chat.text.strip(), chat.error) == ("hello", None)
    found = [line for line in told(system, chat.run, form=form) if line["run"] == chat.run]
    assert [line["event"] for line in found] == ["stream_requested", "stream_start", "stream_end", "cleanup_done"]
    assert len({line.get("trace", found[0]["trace"]) for line in found}) == 1
    assert found[1]["attempt"] == "1"
    assert (found[2]["state"], found[2]["reason"]) == ("completed", "finished")
    assert int(found[2]["duration_ms"]) <= chat.took_s * 1000 + 1  # it is rounded


def test_2_a_client_that_goes_away_ends_its_run(system: System):
    """After 2 s: the model's answer is closed, and the lines say why."""
    headers = {"Authorization": "Bearer devkey"}
    body = {"prompt": "!tokens n=100000 rate=50", "stream": True}
    with system.http.stream("/v1/chat/completions", method="POST", body=body, headers=headers) as response:
        run = response.headers["X-Run-Id"]
        until(lambda: system.model.stats()["open"] == 1, "the model answers")
        time.sleep(2)
    left = time.monotonic()
    until(lambda: system.model.stats()["open"] == 0, "the upstream is closed", 2)
    assert time.monotonic() - left < 1.0
    found = told(system, run)
    assert words(found, run) == ["stream_requested", "stream_start", "stream_cancelled", "stream_end", "cleanup_done"]
    (cancelled,) = (line for line in found if line["run"] == run and line["event"] == "stream_cancelled")
    assert (cancelled["reason"], cancelled["by"]) == ("client_disconnect", "client")


@pytest.mark.parametrize(
    ("phase", "script", "word", "tool", "bound_s"),
    [
        ("before headers", "!slow_headers for=30", CLEANLY, "", COOPERATIVE_S),
        ("before the first token", "!first_token delay=30", CLEANLY, "", COOPERATIVE_S),
        ("mid-stream", "!tokens n=100000 rate=100", CLEANLY, "", COOPERATIVE_S),
        ("stalled", "!stall after=2 for=600", CLEANLY, "", COOPERATIVE_S),
        ("deaf async tool", '!tool deaf {"seconds": 6}', TIMED_OUT, "deaf", COOPERATIVE_S),
        ("sync tool in a thread", '!tool block {"seconds": 6}', TIMED_OUT, "block", COOPERATIVE_S),
        ("blocked loop", '!tool hog {"seconds": 30}', TIMED_OUT, "hog", BLOCKED_S),
    ],
)
def test_3_a_second_prompt_takes_over_from_the_first(
    system: System, figure: Callable[[str], None], phase: str, script: str, word: str, tool: str, bound_s: float
):
    """The critical test: B answers within its bound, A is told what became of it, the order is strict."""
    session = phase.replace(" ", "-")
    first = Chat(system, script, session)
    time.sleep(GAP_S)
    if tool:  # on a busy machine it may not be there after 100 ms
        until(lambda: system.journal(tool), f"{tool} has begun")
    second = Chat(system, "!say four", session).end()
    assert second.text.strip() == "four"
    first.end()
    assert first.error is not None
    assert first.error["code"] == "superseded"
    found = told(system, first.run, second.run)
    check_strict(found, first.run, second.run, word)
    wait_s = started(found, second.run)
    figure(f"{phase:<24} B starts after {wait_s * 1000:5.0f} ms, first token after {second.first_s * 1000:5.0f} ms")
    assert wait_s < bound_s
    assert second.first_s < bound_s + BUSY_S
    assert Chat(system, "!say on", session).end().text.strip() == "on"


def _counts(system: System) -> list[int]:
    """Threads of both processes, tasks of the worker, open upstreams; nothing until the worker reports itself idle."""
    idle = [w["facts"] for w in system.http.get("/api/workers")["workers"] if w["facts"]["runs"] == 0]
    if not idle:
        return []
    gateway = psutil.Process(system.server.pid)
    threads = sum(p.num_threads() for p in [gateway, *gateway.children()])
    return [threads, idle[-1]["tasks"], system.model.stats()["open"]]


def _five(system: System, session: str) -> list[Chat]:
    chats = []
    for number in range(5):
        chats.append(Chat(system, f"!say p{number}\n!tokens n=50 rate=50", session))
        time.sleep(0.05)
    return [chat.end() for chat in chats]


@pytest.mark.parametrize("session", ["", "rapid"], ids=["apart", "one session"])
def test_4_five_prompts_in_a_quarter_of_a_second(serve: Serve, session: str):
    """All end within 3 s of their answer's length; threads and tasks return to what they were."""
    system = serve(HOLDFAST_SPARE="false")  # one that still loads would be counted
    _five(system, "")  # what is made at the first use is made
    time.sleep(3)  # one report of the worker
    before = until(lambda: _counts(system), "the worker is idle", 10, every_s=0.5)
    chats = _five(system, session)
    for number, chat in enumerate(chats):
        assert chat.took_s < ANSWER_S + ENDS_WITHIN_S
        if not session or number == 4:
            assert (chat.error, f"p{number}" in chat.text, "t50 " in chat.text) == (None, True, True)
        else:
            assert chat.error is not None
            assert chat.error["code"] == "superseded"
    found = told(system, *(chat.run for chat in chats))
    if session:
        _one_at_a_time([line for line in found if line.get("session") == session])
        assert [line["run"] for line in found if line["event"] == "stream_end"][5:] == [chat.run for chat in chats]

    def returned() -> bool:
        counts = _counts(system)
        return bool(counts) and all(now <= then for now, then in zip(counts, before, strict=True))

    until(returned, f"threads and tasks return to {before}", 10, every_s=0.5)


def _one_at_a_time(found: list[dict[str, str]]) -> None:
    """No stream of a session starts before the one before it has ended."""
    live = ""
    for line in found:
        if line["event"] == "stream_start":
            assert not live, f"{line['run']} starts while {live} is live"
            live = line["run"]
        elif line["event"] == "stream_end" and live == line["run"]:
            live = ""


def test_5_sessions_do_not_touch_each_other(system: System):
    """Superseding in one leaves the other untouched."""
    one = Chat(system, "!tokens n=100000 rate=50", "session-1")
    two = Chat(system, "!tokens n=100 rate=50", "session-2")
    time.sleep(GAP_S)
    next_one = Chat(system, "!say b", "session-1").end()
    assert next_one.text.strip() == "b"
    assert one.end().error is not None
    assert (two.end().error, two.text) == (None, "".join(f"t{n} " for n in range(1, 101)))
    found = told(system, one.run, two.run, next_one.run)
    check_strict(found, one.run, next_one.run, CLEANLY)
    assert words(found, two.run) == ["stream_requested", "stream_start", "stream_end", "cleanup_done"]

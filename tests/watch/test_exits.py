"""An agent that calls exit() in code of its own ends its run, and nothing else: no neighbour, no worker."""

import re

import pytest

from tests.system.support import System, check_log, until
from tests.system.support import Watch as Reader

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(params=["system", "embedded"])
def either(request: pytest.FixtureRequest) -> System:
    """With the worker as a process, and on a thread."""
    return request.getfixturevalue(request.param)


def workers(system: System) -> list[str]:
    """Every worker that ever began, by the facts and the log."""
    names = re.findall(r"^worker_started .*\bpid=(\d+)", system.server.log(), re.MULTILINE)
    return names or [worker["worker"] for worker in system.http.get("/api/workers")["workers"]]


def test_an_exit_outside_tools_ends_that_run_only(either: System):
    """P11: sys.exit() in a task, in a task group, in a toolset's hook; the worker's process is the same afterwards."""
    before = until(lambda: workers(either), "a worker reports")
    neighbour = Reader(either, either.run("!tokens n=150 rate=50", agent="watched", session="neighbour"))
    until(lambda: any(e["type"] == "text.delta" for e in neighbour.events), "the neighbour streams")
    for agent, text, cause in (
        ("quitter", "exit", "SystemExit"),
        ("quitter", "interrupt", "KeyboardInterrupt"),
        ("quitter", "group", "SystemExit"),
        ("hooked", "hello", "SystemExit"),
    ):
        record = either.end(either.run(text, agent=agent, session=f"{agent}-{text}"))
        assert (record["state"], record["reason"]) == ("failed", "agent_error"), record
        assert (record["error"]["code"], record["error"]["cause"]) == ("agent_exit", cause), record
        assert record["error"]["remedy"]
    caught = either.end(either.run("forget", agent="quitter"))
    assert (caught["state"], caught["output"]) == ("completed", "before after"), "it is an ordinary exception"
    events = neighbour.end()
    check_log(events)
    assert [e["attempt"] for e in events if e["type"] == "run.started"] == [1]
    assert events[-1]["type"] == "run.completed"
    assert workers(either) == before
    either.prompt_works("neighbour")

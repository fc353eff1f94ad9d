"""AG-UI as its users have it: HttpAgent of @ag-ui/client 1.0, from npm, against a real server."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.streams.node import node
from tests.streams.test_ai_sdk import tokens
from tests.system.support import System, frames, full

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def ask(url: str, do: str, **job: Any) -> Any:
    return node("ag_ui.mjs", url, do=do, **job)


def results(seen: Any) -> list[str]:
    return [message["content"] for message in seen["messages"] if message["role"] == "tool"]


def test_text_reasoning_and_tools_arrive_as_they_were_said(url: str, site: System) -> None:
    """An unchanged HttpAgent has what the log says, over two runs of one thread."""
    first = '!think n=5\n!tool look {"at": "x"}\n!tokens n=40 rate=400'
    seen = ask(url, "say", thread="ag-say", prompts=[first, "!say second"])
    assert (seen["text"], seen["error"]) == (tokens(40) + "second", None)
    assert results(seen) == ["seen x"]
    assert [m["content"] for m in seen["messages"] if m["role"] == "reasoning"] == ["r1 r2 r3 r4 r5 "]
    assert [(end["type"], end["outcome"]["type"]) for end in seen["ends"]] == [("RUN_FINISHED", "success")] * 2
    assert len(site.http.get("/api/sessions/ag-say")["messages"]) > 2


def test_failures_are_run_error(url: str) -> None:
    """A run that fails says so in the protocol's own way, and last."""
    seen = ask(url, "say", thread="ag-failing", prompts=["!tokens n=5 rate=200\n!error_in_stream after=3"])
    assert [(end["type"], end["code"]) for end in seen["ends"]] == [("RUN_ERROR", "model_error")]
    assert seen["types"][-1] == "RUN_ERROR"


def test_another_page_comes_to_what_is_active(url: str) -> None:
    """A page that has nothing of a thread gets a snapshot, and goes on live."""
    text = '!tool look {"at": "x"}\n!tokens n=80 rate=80'
    first, second = ask(url, "attach", thread=f"ag-attach-{url.rpartition(':')[2]}", text=text)
    assert first["text"] == second["text"] == tokens(80)
    assert second["types"][:2] == ["RUN_STARTED", "MESSAGES_SNAPSHOT"]
    assert results(second) == ["seen x"]
    assert [m["content"] for m in second["messages"] if m["role"] == "user"] == [text]
    assert [len(seen["ends"]) for seen in (first, second)] == [1, 1]


def test_stop_ends_the_run_and_its_stream(url: str, site: System) -> None:
    """A stopped run finishes with the outcome cancelled, not with an error."""
    seen = ask(url, "stop", thread="ag-stop", text="!tokens n=3000 rate=50")
    assert [end["outcome"]["type"] for end in seen["ends"]] == ["cancelled"]
    assert site.record(seen["run"])["reason"] == "stopped"
    assert tokens(3000).startswith(seen["text"])


@pytest.mark.parametrize(
    ("job", "result"),
    [
        ({"payload": {"approved": True}}, "paid 3"),
        ({"payload": {"approved": True, "editedArgs": {"amount": 5}}}, "paid 5"),
        ({"payload": {"approved": False, "reason": "too much"}}, "too much"),
        ({"status": "cancelled"}, "cancelled by the user"),
    ],
    ids=["approved", "edited", "denied", "cancelled"],
)
def test_interrupts_are_answered_by_resume(
    url: str, job: dict[str, Any], result: str, request: pytest.FixtureRequest
) -> None:
    """An approval is an interrupt; what buildResumeArray makes of the answer decides it."""
    text = '!say well\n!tool pay {"amount": 3}\n!say so be it'
    seen = ask(url, "approve", thread=f"ag-{request.node.callspec.id}", text=text, **job)
    assert [interrupt["reason"] for interrupt in seen["interrupts"]] == ["tool_call"]
    assert [end["outcome"]["type"] for end in seen["ends"]] == ["interrupt", "success"]
    assert (seen["text"], results(seen)) == ("wellso be it", [result])


def test_result_of_a_call_elsewhere_is_given_by_resume(url: str) -> None:
    """A deferred call is an interrupt without a form; its payload is the result."""
    text = '!tool outside {"question": "why"}\n!say thanks'
    seen = ask(url, "approve", thread="ag-outside", text=text, payload={"because": 1})
    assert seen["interrupts"][0]["reason"] == "external_call"
    assert (seen["text"], [json.loads(text) for text in results(seen)]) == ("thanks", [{"because": 1}])


@pytest.mark.timeout(600)
def test_cut_anywhere_and_resumed_the_text_is_exact(url: str) -> None:
    """A connection that breaks at any byte costs nothing: the same run id comes back to the same run."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    threads = [
        {
            "thread": f"ag-cut-{seed}-{n}",
            "text": '!think n=10\n!tool look {"at": "é"}\n!tokens n=120 rate=100',
            "cuts": [rng.randrange(1, 5000), *(rng.randrange(1, 2500) for _ in range(2))],
        }
        for n in range(full(34, 5))
    ]
    for start in range(0, len(threads), 10):
        batch = threads[start : start + 10]
        for asked, seen in zip(batch, ask(url, "cut", threads=batch), strict=True):
            assert seen["text"] == tokens(120), (seed, asked, seen)
            assert results(seen) == ["seen é"], (seed, asked, seen)
            assert len(seen["ends"]) == 1, (seed, asked, seen)


def test_the_same_request_again_is_the_same_run(site: System) -> None:
    """A client that repeats a request starts nothing twice; it gets one snapshot, the same each time, and the end."""
    message = {"id": "u", "role": "user", "content": '!think n=3\n!tool look {"at": "y"}\n!say done'}
    body = {"threadId": "ag-again", "runId": "once", "messages": [message], "tools": [], "context": []}
    bodies = []
    for _ in range(3):
        with site.http.stream("/ag-ui/asker", method="POST", body=body) as response:
            bodies.append((response.headers["X-Run-Id"], response.read()))
    assert len({run for run, _ in bodies}) == 1
    assert bodies[1] == bodies[2]
    told = [json.loads(line[6:]) for line in bodies[1][1].decode().split("\n") if line.startswith("data: ")]
    assert [event["type"] for event in told] == ["RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"]
    assert [m.get("content") for m in told[1]["messages"]] == [message["content"], "r1 r2 r3 ", None, "seen y", "done"]


@pytest.mark.parametrize(
    ("agent", "body", "status", "code"),
    [
        ("nobody", {"messages": [{"role": "user", "content": "x"}]}, 404, "unknown_agent"),
        ("asker", {}, 422, "invalid_request"),
        ("asker", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, 422, "invalid_request"),
        ("asker", {"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, 422, "invalid_request"),
        ("asker", {"messages": [{"content": "x"}]}, 422, "invalid_request"),
        ("asker", {"resume": [{"interruptId": "c", "status": "resolved"}]}, 422, "invalid_request"),
    ],
)
def test_bad_requests_say_what_is_wrong(site: System, agent: str, body: dict[str, Any], status: int, code: str) -> None:
    """A client's mistake is named, and starts nothing."""
    found, problem = site.http.ask("POST", f"/ag-ui/{agent}", {"threadId": "ag-bad", "runId": "r", **body})
    assert (found, problem["code"]) == (status, code)


def test_an_unclear_answer_decides_nothing(site: System) -> None:
    """A payload that is not a plain yes or no is refused: nothing runs by mistake."""
    message = {"id": "u", "role": "user", "content": '!tool pay {"amount": 9}'}
    body = {"threadId": "ag-unclear", "runId": "a", "messages": [message]}
    with site.http.stream("/ag-ui/asker", method="POST", body=body) as response:
        run, told = response.headers["X-Run-Id"], [json.loads(data) for _, _, data in frames(response)]
    call = told[-1]["outcome"]["interrupts"][0]["id"]
    for payload in ({}, {"approved": 1}, {"approved": "true"}, "yes", None):
        entry = {"interruptId": call, "status": "resolved", "payload": payload}
        assert site.http.ask("POST", "/ag-ui/asker", {**body, "runId": "b", "resume": [entry]})[0] == 422
    assert site.record(run)["state"] == "waiting"
    site.stop(run)


@pytest.mark.parametrize(
    ("result", "kept"),
    [({"content": "sunny"}, ("success", "sunny")), ({"content": "", "error": "no net"}, ("failed", "no net"))],
    ids=["a result", "an error"],
)
def test_a_tool_of_the_page_is_called_and_its_result_goes_on(
    url: str, site: System, result: dict[str, Any], kept: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    """Frontend tools are what AG-UI is for: the run ends with the call open, the page's next run has the result."""
    thread = f"ag-tools-{request.node.callspec.id.replace(' ', '-')}-{url.rpartition(':')[2]}"
    tool = {"name": "weather", "description": "Of a city", "parameters": {"type": "object", "properties": {}}}
    text = '!say looking\n!tool look {"at": "x"}\n!tool weather {"city": "Oslo"}\n!say it is done'
    seen = ask(url, "tools", thread=thread, text=text, tools=[tool], result=result)
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in seen["open"]] == [
        ("weather", '{"city": "Oslo"}')
    ]
    assert (seen["text"], seen["error"]) == ("lookingit is done", None)
    assert [end["outcome"]["type"] for end in seen["ends"]] == ["success", "success"]
    again = seen["again"]
    assert (again["run"], again["text"], again["error"]) == (seen["run"], seen["text"], None)
    said = site.http.get(f"/api/sessions/{thread}")["messages"]
    assert len([m for m in said if m["role"] == "user"]) == 1
    assert [(m["outcome"], m["result"]) for m in said if m["role"] == "tool"] == [("success", "seen x"), kept]

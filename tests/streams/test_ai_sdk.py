"""`useChat` as its users have it: the Chat and the transport of `ai` 7, from npm, against a real server."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from tests.streams.node import node
from tests.system.support import System, frames, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def ask(url: str, do: str, **job: Any) -> Any:
    return node("ai_sdk.mjs", url, do=do, **job)


def tokens(n: int) -> str:
    return "".join(f"t{k} " for k in range(1, n + 1))


def test_text_reasoning_and_tools_arrive_as_they_were_said(url: str, site: System) -> None:
    """An unchanged useChat shows what the log says: no character more or less, one end."""
    text = '!think n=5\n!tool look {"at": "x"}\n!tokens n=40 rate=400'
    seen = ask(url, "say", chat="say", text=text)
    assert (seen["text"], seen["reasoning"]) == (tokens(40), "r1 r2 r3 r4 r5 ")
    assert (seen["status"], seen["ends"]) == ("ready", ["finish"])
    run = seen["metadata"]["run"]
    assert seen["id"] == f"msg_{run}"
    assert seen["text"] == site.record(run)["output"]
    (tool,) = [part for part in seen["parts"] if part["type"] == "tool-look"]
    assert (tool["state"], tool["input"], tool["output"]) == ("output-available", {"at": "x"}, "seen x")


def test_failures_are_shown_and_nothing_stays_open(url: str) -> None:
    """A run that fails is an error in the chat, not a message that ends somewhere."""
    seen = ask(url, "say", chat="failing", text="!tokens n=5 rate=200\n!error_in_stream after=3")
    assert (seen["status"], seen["ends"]) == ("error", ["error"])
    assert seen["metadata"]["state"] == "failed"
    assert all(part.get("state") in (None, "done") for part in seen["parts"])


def test_nothing_to_resume_is_204(url: str, site: System) -> None:
    """useChat asks on every page load; null tells it that there is nothing."""
    assert ask(url, "idle", chat="never-was") == {"stream": None}
    site.end(site.run("!say hi", session="was-once"))
    assert ask(url, "idle", chat="was-once") == {"stream": None}


def test_another_page_sees_the_whole_run(url: str) -> None:
    """A page that is opened while a run speaks has the same message in the end."""
    first, second = ask(url, "watch", chat="watched", text="!tokens n=80 rate=80")
    assert first["text"] == second["text"] == tokens(80)
    assert first["id"] == second["id"]
    assert first["ends"] == second["ends"] == ["finish"]


def test_stop_ends_the_run_and_the_chat(url: str, site: System) -> None:
    """The stop route ends the run itself, and every page that shows it."""
    seen = ask(url, "stop", chat="stopped", text="!tokens n=3000 rate=50")
    assert (seen["ends"], seen["stop"]) == (["abort"], 202)
    record = site.record(seen["metadata"]["run"])
    assert (record["state"], record["reason"]) == ("cancelled", "stopped")
    assert tokens(3000).startswith(seen["text"])
    assert site.http.ask("POST", "/api/chat/stopped/stop")[1]["run"] is None


@pytest.mark.parametrize("approved", [True, False])
def test_approval_is_asked_and_answered_in_the_chat(url: str, approved: bool) -> None:
    """addToolApprovalResponse decides, and the answer goes on in the same message."""
    text = '!say well\n!tool pay {"amount": 3}\n!say so be it'
    seen = ask(url, "approve", chat=f"approve-{approved}", text=text, approved=approved, reason="because")
    before, after = seen["before"], seen["after"]
    assert (before["ends"], before["metadata"]["state"]) == (["finish"], "waiting")
    assert after["ends"] == ["finish", "finish"]
    assert (after["id"], after["messages"]) == (before["id"], 2)
    assert after["text"] == "wellso be it"
    (tool,) = [part for part in after["parts"] if part["type"] == "tool-pay"]
    assert tool["approval"]["approved"] is approved
    assert tool["state"] == ("output-available" if approved else "output-denied")


def test_result_of_a_call_elsewhere_is_given_in_the_chat(url: str) -> None:
    """addToolOutput answers a deferred call."""
    text = '!tool outside {"question": "why"}\n!say thanks'
    seen = ask(url, "outside", chat="outside", text=text, output={"because": 1})
    (tool,) = [part for part in seen["parts"] if part["type"] == "tool-outside"]
    assert (tool["state"], tool["output"]) == ("output-available", {"because": 1})
    assert seen["text"] == "thanks"


@pytest.mark.timeout(600)
def test_cut_anywhere_and_resumed_the_text_is_exact(url: str) -> None:
    """A connection that breaks at any byte costs nothing: no gap, no duplicate, one message, one end."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    chats = [
        {
            "chat": f"cut-{seed}-{n}",
            "text": '!think n=10\n!tool look {"at": "é"}\n!tokens n=150 rate=100',
            "cuts": sorted(rng.randrange(1, 3000) for _ in range(3)),
        }
        for n in range(full(34, 5))
    ]
    resumed = 0
    for start in range(0, len(chats), 10):
        for asked, seen in zip(
            chats[start : start + 10], ask(url, "cut", chats=chats[start : start + 10]), strict=True
        ):
            assert seen["text"] == tokens(150), (seed, asked, seen)
            assert seen["reasoning"] == "".join(f"r{k} " for k in range(1, 11)), (seed, asked, seen)
            assert [p["type"] for p in seen["parts"]].count("tool-look") == 1, (seed, asked, seen)
            assert seen["messages"] == 2, (seed, asked, seen)
            resumed += seen["resumed"]
    assert resumed >= len(chats), seed  # on a busy machine chunks are larger and fewer, and a cut may come after them


@pytest.mark.timeout(600)
def test_our_transport_comes_back_by_itself_and_its_stop_stops_the_run(url: str, site: System) -> None:
    """useChat of `ai` with HoldfastChatTransport of clients/js: one call of sendMessage, whatever breaks."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    chats = [
        {
            "chat": f"ours-{seed}-{n}",
            "text": '!think n=10\n!tool look {"at": "é"}\n!tokens n=150 rate=100',
            "cuts": [rng.randrange(1, 3000) for _ in range(4)],
        }
        for n in range(full(30, 4))
    ]
    left = 0
    for start in range(0, len(chats), 10):
        batch = chats[start : start + 10]
        found = ask(url, "ours", chats=batch, stopped=f"ours-stopped-{seed}-{start}")
        for asked, seen in zip(batch, found["said"], strict=True):
            assert (seen["text"], seen["ends"], seen["messages"]) == (tokens(150), ["finish"], 2), (seed, asked, seen)
            left += seen["left"]
        run = found["stopped"]["metadata"]["run"]
        assert site.end(run)["reason"] == "stopped"
    assert left < len(chats) * 2, seed


def test_a_resumed_stream_is_the_same_bytes(site: System) -> None:
    """Ids and chunks are a function of the log: whoever reads it again gets what the first reader got."""
    text = '!think n=3\n!tool look {"at": "y"}\n!say done'
    body = {"id": "bytes", "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": text}]}]}
    with site.http.stream("/api/chat", method="POST", body=body) as response:
        run, first = response.headers["X-Run-Id"], response.read()
        assert response.headers["x-vercel-ai-ui-message-stream"] == "v1"
    with site.http.stream(f"/api/chat/bytes/stream?run={run}") as response:
        assert response.read() == first
    assert first.endswith(b"data: [DONE]\n\n")


def test_cancelled_only_when_nobody_came_back(site: System) -> None:
    """With on_disconnect cancel: who drops and returns keeps the run, who does not loses it, who is asked may think."""
    texts = {
        "returns": "!tokens n=2000 rate=50",
        "leaves": "!tokens n=2000 rate=50",
        "thinks": '!tool pay {"amount": 7}\n!say paid',
    }
    runs, asked = {}, list[str]()
    for chat, text in texts.items():
        message = {"role": "user", "parts": [{"type": "text", "text": text}]}
        body = {"id": chat, "messages": [message], "on_disconnect": "cancel"}
        with site.http.stream("/api/chat", method="POST", body=body) as response:
            runs[chat] = response.headers["X-Run-Id"]
            told = frames(response)
            asked = [data for _, _, data in told] if chat == "thinks" else [next(told)[2]]
    left = time.monotonic()
    with site.http.stream("/api/chat/returns/stream"):
        record = site.end(runs["leaves"], 15)
        assert (record["state"], record["reason"]) == ("cancelled", "client_disconnect")
        assert time.monotonic() - left > 1.5
        until(lambda: time.monotonic() - left > 4.5, "longer than the grace")
        assert site.record(runs["returns"])["state"] == "running"
    site.stop(runs["returns"])
    assert site.end(runs["returns"])["reason"] == "stopped"
    assert site.record(runs["thinks"])["state"] == "waiting"
    answer_once(site, runs["thinks"], [json.loads(data) for data in asked if data != "[DONE]"])


def answer_once(site: System, run: str, asked: list[dict[str, Any]]) -> None:
    """A client that repeats its answer decides nothing twice; another answer is late."""
    (call,) = [chunk["toolCallId"] for chunk in asked if chunk["type"] == "tool-approval-request"]
    part = {"type": "tool-pay", "toolCallId": call, "state": "approval-responded"}
    approval = {"id": call, "approved": True}
    body = {"id": "thinks", "messages": [{"id": f"msg_{run}", "role": "assistant", "parts": [part]}]}
    part["approval"] = approval
    for _ in range(2):
        with site.http.stream("/api/chat", method="POST", body=body) as response:
            assert response.status == 200
            said = [json.loads(data) for _, _, data in frames(response) if data != "[DONE]"]
        assert [c["delta"] for c in said if c["type"] == "text-delta"] == ["paid"]
        assert [c["type"] for c in said if c["type"] in ("finish", "error", "abort")] == ["finish"]
    approval["approved"] = False
    status, problem = site.http.ask("POST", "/api/chat", body)
    assert (status, problem["code"]) == (409, "late_decision")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "id"),
        ({"id": "no spaces", "messages": []}, "id"),
        ({"id": "x", "messages": []}, "messages"),
        ({"id": "x", "messages": [{"role": "system", "parts": []}]}, "role"),
        ({"id": "x", "messages": [{"role": "user", "parts": []}]}, "input is empty"),
        ({"id": "x", "messages": [{"role": "user", "parts": [{"type": "file", "url": "data:,"}]}]}, "files"),
        ({"id": "x", "messages": [{"role": "assistant", "parts": []}]}, "waits"),
    ],
)
def test_bad_requests_say_what_is_wrong(site: System, body: Any, says: str) -> None:
    """A client's mistake is named, and starts nothing."""
    status, problem = site.http.ask("POST", "/api/chat", body)
    assert (status, problem["code"]) == (422, "invalid_request")
    assert says in problem["detail"]

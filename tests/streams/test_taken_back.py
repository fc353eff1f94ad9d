"""What an attempt said before it was lost is taken back on the screen: the text in the end is the run's, no more."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from holdfast.domain.events import EventType, encode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, State
from holdfast.gateway.ag_ui_encoder import AGUIEncoder
from holdfast.gateway.ai_sdk_encoder import UIMessageEncoder
from holdfast.ports.store import Page, RunRecord, RunSpec, Status
from tests.streams.node import node
from tests.streams.test_ai_sdk import tokens
from tests.system.support import System, until

FIRST: list[tuple[EventType, dict[str, Any]]] = [
    (EventType.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 1}),
    (EventType.TEXT_DELTA, {"part": 0, "text": "kept "}),
    (EventType.TEXT_DONE, {"part": 0, "text": "kept "}),
    (EventType.TOOL_CALLED, {"call": "c1", "name": "look", "args": {"at": "x"}}),
    (EventType.TOOL_FINISHED, {"call": "c1", "name": "look", "outcome": "success", "result": "seen"}),
    (EventType.MODEL_REQUESTED, {"step": 2, "model": "m", "attempt": 1}),
    (EventType.REASONING_DELTA, {"part": 1, "text": "lost thought"}),
    (EventType.TEXT_DELTA, {"part": 2, "text": "lost "}),
    (EventType.TOOL_ARGS, {"call": "c2", "name": "look", "delta": '{"a'}),
]
LAST: list[tuple[EventType, dict[str, Any]]] = [
    (EventType.MODEL_REQUESTED, {"step": 2, "model": "m", "attempt": 2}),
    (EventType.TEXT_DELTA, {"part": 3, "text": "said"}),
    (EventType.RUN_COMPLETED, {"output": "said", "usage": {}}),
]


def discard(*parts: int) -> tuple[EventType, dict[str, Any]]:
    return EventType.ATTEMPT_DISCARDED, {"step": 2, "reason": "worker_lost", "parts": list(parts), "calls": []}


def record() -> RunRecord:
    fields = dict.fromkeys(RunRecord.__struct_fields__)
    fields |= {
        "key": RunKey("local", "r_1"),
        "session": "s",
        "spec": RunSpec(input="x", agent="a"),
        "policy": Policy.SUPERSEDE,
    }
    return RunRecord(**{**fields, "state": State.COMPLETED})


def told(encoder: Any, events: list[tuple[EventType, dict[str, Any]]], size: int = 100) -> list[dict[str, Any]]:
    """What an encoder writes, in pages of so many events."""
    data = [encode_event(seq, "r_1", kind, 0, fields) for seq, (kind, fields) in enumerate(events, 1)]
    out = encoder.begin()
    for at in range(0, len(data), size):
        part = data[at : at + size]
        out += encoder.page(Page(Status.OK, part, [1] * len(part), at + 1, len(data), 1, State.COMPLETED))
    assert encoder.ended()
    return [json.loads(line[6:]) for line in out.decode().split("\n") if line.startswith("data: {")]


def ui_text(chunks: list[dict[str, Any]]) -> str:
    """The text of the message, folded as the AI SDK folds it."""
    parts: list[dict[str, Any]] = []
    for chunk in chunks:
        if chunk["type"] == "start-step":
            parts.append({"type": "step"})
        elif chunk["type"] == "reset-step":
            last = max(n for n, part in enumerate(parts) if part["type"] == "step")
            del parts[last + 1 :]
        elif chunk["type"] == "text-start":
            parts.append({"type": "text", "id": chunk["id"], "text": ""})
        elif chunk["type"] == "text-delta":
            next(p for p in reversed(parts) if p.get("id") == chunk["id"])["text"] += chunk["delta"]
    return "".join(part["text"] for part in parts if part["type"] == "text")


@pytest.mark.parametrize("size", [1, 4, 100])
def test_ai_sdk_empties_the_step_and_says_again_what_stays(size: int) -> None:
    """reset-step takes the lost attempt away and leaves the step before it alone; pages change no byte."""
    events = [*FIRST, discard(1, 2), *LAST]
    chunks = told(UIMessageEncoder(record()), events, size)
    assert ui_text(chunks) == "kept said"
    assert [chunk["type"] for chunk in chunks].count("reset-step") == 1
    assert chunks == told(UIMessageEncoder(record()), events)
    assert chunks[-1]["type"] == "finish"
    partly = told(UIMessageEncoder(record()), [*FIRST, discard(1), *LAST])
    assert ui_text(partly) == "kept lost said"
    assert [c["delta"] for c in partly if c["type"] == "text-delta"] == ["kept ", "lost ", "lost ", "said"]


def test_ai_sdk_says_where_it_cannot_take_back() -> None:
    """A discard that reaches into an earlier step is an error, not a wrong text."""
    chunks = told(UIMessageEncoder(record()), [*FIRST, discard(0, 1, 2), *LAST])
    assert [c["type"] for c in chunks if c["type"] in ("finish", "error", "abort")] == ["error"]
    assert "said" not in ui_text(chunks)


@pytest.mark.parametrize("parts", [(1, 2), (0, 1, 2)])
def test_ag_ui_says_the_conversation_anew(parts: tuple[int, ...]) -> None:
    """The snapshot has what stays, whichever step it is of; everything that was begun is ended."""
    encoder = AGUIEncoder(record(), "t", "r", [{"id": "u", "role": "user", "content": "x"}])
    said = told(encoder, [*FIRST, discard(*parts), *LAST])
    (snapshot,) = [event for event in said if event["type"] == "MESSAGES_SNAPSHOT"]
    texts = [m["content"] for m in snapshot["messages"] if m["role"] == "assistant" and "content" in m]
    assert texts == ([] if 0 in parts else ["kept "])
    assert not [m for m in snapshot["messages"] if m["role"] == "reasoning"]
    kinds = [event["type"] for event in said]
    for what in ("TEXT_MESSAGE", "REASONING_MESSAGE", "TOOL_CALL"):
        assert kinds.count(f"{what}_START") == kinds.count(f"{what}_END"), what
    assert said[-1]["type"] == "RUN_FINISHED"


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_worker_killed_while_clients_watch(url: str, site: System) -> None:
    """kill -9 of the worker in the middle of an answer: both clients have the run's text, exactly, in the end."""
    text = '!tool look {"at": "x"}\n!tokens n=100 rate=40'
    found: dict[str, Any] = {}

    def watch(name: str, script: str, **job: Any) -> None:
        found[name] = node(script, url, **job)

    jobs = {
        "ai": ("ai_sdk.mjs", {"do": "say", "chat": "killed-ai", "text": text}),
        "ag": ("ag_ui.mjs", {"do": "say", "thread": "killed-ag", "prompts": [text]}),
    }
    threads = [threading.Thread(target=watch, args=(k, script), kwargs=job) for k, (script, job) in jobs.items()]
    for thread in threads:
        thread.start()
    runs = []
    for session in ("killed-ai", "killed-ag"):
        path = f"/api/runs?session={session}"
        (run,) = until(lambda path=path: site.http.get(path)["runs"], "its run is there")
        site.until_text(run["id"], "t8 ")
        runs.append(run["id"])
    for worker in site.workers():
        worker.kill()
    for thread in threads:
        thread.join(60)
    for run in runs:
        discarded = [event for event in site.events(run) if event["type"] == "attempt.discarded"]
        assert any(event["parts"] for event in discarded)
    assert found["ai"]["text"] == found["ag"]["text"] == tokens(100)
    assert found["ai"]["ends"] == ["finish"]
    assert [end["type"] for end in found["ag"]["ends"]] == ["RUN_FINISHED"]

"""The same promise over OpenAI's protocol: with a session of ours, and with a history that the client supplies."""

import json
import os
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.agents.rules import problems
from tests.history import anthropic
from tests.history.site import Site
from tests.history.talk import Prompt, check, converse
from tests.history.test_aborts import OK, SCRIPT

EXAMPLES = 1000 if os.environ.get("HOLDFAST_FULL") else 40


@pytest.mark.parametrize("at", [1, 15, 23, 36])
def test_session_by_header_keeps_a_valid_history(site: Site, at: int) -> None:
    """A client that names its session is told apart from its own idea of the history, stopped or superseded."""
    talk = [Prompt(SCRIPT, "told", at), Prompt(SCRIPT, "supersede", at), Prompt(SCRIPT, "resumed", at), OK]
    turns = site.call(converse(site, talk, chat=True))
    assert turns[-1].record.state == "completed", turns[-1].story()
    check(site, turns)


def call(name: str, text: str = '{"q": 1}', tool: str = "search") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": tool, "arguments": text}}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: Any, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **({"tool_calls": list(calls)} if calls else {})}


def result(name: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": name, "content": text}


SUPPLIED: dict[str, list[dict[str, Any]]] = {
    "consecutive users": [user("one"), user("two"), user("three")],
    "empty assistant": [user("one"), said("")],
    "null assistant": [user("one"), said(None)],
    "blank assistant": [user("one"), said(" \n\t")],
    "assistant first": [said("hello, what can I do?")],
    "two assistants": [user("one"), said("a"), said("b")],
    "call and result": [user("one"), said(None, call("c1")), result("c1", "found"), said("there")],
    "call without result": [user("one"), said("looking", call("c1"))],
    "one of two results": [user("one"), said(None, call("c1"), call("c2")), result("c2", "second")],
    "results in another order": [user("x"), said(None, call("c1"), call("c2")), result("c2", "b"), result("c1", "a")],
    "result behind the next user": [user("one"), said(None, call("c1")), user("wait"), result("c1", "late")],
    "result without call": [user("one"), result("c9", "nobody asked")],
    "an id used twice": [user("x"), said(None, call("c")), result("c", "1"), said(None, call("c")), result("c", "2")],
    "arguments that are no JSON": [user("one"), said(None, call("c1", "{broken")), result("c1", "no")],
    "arguments that are a list": [user("one"), said(None, call("c1", "[1, 2]")), result("c1", "no")],
    "arguments that are empty": [user("one"), said(None, call("c1", "")), result("c1", "no")],
    "foreign letters in names": [user("x"), said(None, call("c:1/ü", "{}", "a.b c")), result("c:1/ü", "ok")],
    "parts": [user([{"type": "text", "text": "one"}]), said([{"type": "text", "text": "two"}])],
    "empty user": [user(""), said("?"), user([])],
    "system in the middle": [user("one"), {"role": "system", "content": "be kind"}, said("two")],
    "only the prompt": [],
}


@pytest.mark.parametrize("messages", SUPPLIED.values(), ids=SUPPLIED.keys())
def test_history_of_a_client_is_made_valid(site: Site, messages: list[dict[str, Any]]) -> None:
    """What clients send is often half a conversation; the model gets a whole one, and nothing that was said is lost."""
    check_supplied(site, messages)


texts = st.sampled_from(["", " ", "\n", "one", "two", "a longer one", "ünï 🌊", None])
names = st.sampled_from(["c1", "c2", "c3", "call:x", "ü"])
arguments = st.sampled_from(["{}", '{"q": 1}', "", "{", "[]", "null", '"x"', "7", '{"a": {"b": [1]}}'])
calls = st.lists(st.builds(call, names, arguments, st.sampled_from(["search", "a b", ""])), max_size=3)
turns = st.one_of(
    st.builds(user, texts),
    st.builds(lambda text, asked: said(text, *asked), texts, calls),
    st.builds(result, names, texts.map(lambda text: text or "")),
    st.builds(lambda text: {"role": "system", "content": text}, texts),
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(messages=st.lists(turns, max_size=8))
def test_any_history_of_a_client_is_made_valid(site: Site, messages: list[dict[str, Any]]) -> None:
    """Nothing that passes for messages makes a request that a provider refuses, or an error of ours."""
    check_supplied(site, messages)


def check_supplied(site: Site, messages: list[dict[str, Any]]) -> None:
    mark = f"#{site.name()}#"
    prompt = f"{mark}\n!say rate=9999 well"
    answer = site.call(_post(site, {"messages": [*messages, user(prompt)]}))
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "well"
    (sent,) = site.requests(mark)
    told = json.dumps(sent)
    assert not problems(sent), f"{problems(sent)} {told}"
    assert not anthropic.problems(sent), f"{anthropic.problems(sent)} {told}"
    for role in ("user", "assistant"):
        text = "\n".join(str(m.get("content") or "") for m in sent if m["role"] == role)
        at = 0
        for message in messages:
            spoken = _text(message["content"]).strip()
            if message["role"] == role and spoken:
                at = text.find(spoken, at) + len(spoken)
                assert at >= len(spoken), f"{spoken!r} is missing or out of order in {told}"
    answered = {m["content"] for m in sent if m["role"] == "tool"}
    asked = {c["id"] for m in messages for c in m.get("tool_calls") or []}
    for message in messages:
        if message["role"] == "tool" and message["tool_call_id"] in asked and _only(messages, message):
            assert message["content"] in answered, f"{message} is missing in {told}"


def _only(messages: list[dict[str, Any]], wanted: dict[str, Any]) -> bool:
    """Whether a result is the one of its call, and comes after it."""
    name = wanted["tool_call_id"]
    calls_of = [n for n, m in enumerate(messages) for c in m.get("tool_calls") or [] if c["id"] == name]
    results_of = [n for n, m in enumerate(messages) if m.get("tool_call_id") == name]
    return len(calls_of) == len(results_of) == 1 and calls_of[0] < results_of[0]


async def _post(site: Site, body: dict[str, Any]) -> httpx2.Response:
    return await site.http.post("/v1/chat/completions", json=body)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content)
    return content or ""

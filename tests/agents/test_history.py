"""What a model is told of the session so far: always valid, and nothing of worth is lost."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
    repair_messages,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from holdfast.agents.checkpoint import Writer
from holdfast.agents.history import ANSWERED, NO_ANSWER, NO_RESULT, history_of, mend
from holdfast.domain.messages import HistoryEntry, Message, ToolCall
from tests.agents.rules import problems

MODEL = OpenAIChatModel("any", provider=OpenAIProvider(base_url="http://127.0.0.1:9/v1", api_key="none"))


def entry(
    messages: list[Message] | None = None,
    native: bytes = b"",
    tail: list[Message] | None = None,
    state: str = "completed",
) -> HistoryEntry:
    kind = "pydantic-ai" if native else ""
    return HistoryEntry("r_0", state, messages or [], kind, native, tail or [])


async def wire(messages: list[ModelMessage]) -> list[dict[str, Any]]:
    """The messages of a request with these and one more prompt, as OpenAI gets them."""
    asked = [*messages, ModelRequest(parts=[UserPromptPart("and now?")])]
    parameters = ModelRequestParameters()
    mapped = await MODEL._map_messages(MODEL.prepare_messages(asked, parameters), parameters, model_settings={})
    return json.loads(json.dumps(mapped))


def user(text: str) -> Message:
    return Message(role="user", text=text)


def says(text: str, *calls: ToolCall, interrupted: bool = False) -> Message:
    return Message(role="assistant", text=text, calls=list(calls), interrupted=interrupted)


def result(call: str, value: Any = "r", outcome: str = "success") -> Message:
    return Message(role="tool", call=call, name="t", outcome=outcome, result=value)


CALL = ToolCall(call="c1", name="t", args={"x": 1})


async def test_a_run_that_never_answered_is_said_to_be_interrupted() -> None:
    """Two user turns in a row would be refused, or taken for one."""
    sent = await wire(history_of([entry([user("a")], state="failed"), entry([user("b"), says("B")])]))
    assert [m["content"] for m in sent] == ["a", NO_ANSWER, "b", "B", "and now?"]


async def test_a_partial_answer_is_kept_and_marked() -> None:
    """The user saw it, and will refer to it."""
    sent = await wire(history_of([entry([user("a"), says("half of", interrupted=True)], state="cancelled")]))
    assert sent[1]["content"] == "half of [interrupted]"


async def test_a_call_without_a_result_gets_one_that_says_so() -> None:
    """Each call has exactly one result, directly after it."""
    sent = await wire(history_of([entry([user("a"), says("", CALL)], state="cancelled")]))
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "assistant", "user"]
    assert sent[2]["content"] == NO_RESULT
    assert problems(sent) == []


async def test_a_result_that_comes_late_takes_its_place() -> None:
    """The log's tail may bring the result of a call that the last checkpoint has without one."""
    native = Writer().messages(
        1,
        [
            ModelRequest(parts=[UserPromptPart("a")]),
            ModelResponse(parts=[ToolCallPart("t", {"x": 1}, "c1"), ToolCallPart("t", {"x": 2}, "c2")]),
        ],
    )
    tail = [result("c2", "late")]
    sent = await wire(history_of([entry(native=native, tail=tail, state="failed")]))
    assert [m["content"] for m in sent if m["role"] == "tool"] == [NO_RESULT, "late"]
    assert problems(sent) == []


async def test_a_result_after_other_words_still_takes_its_place() -> None:
    """Even behind a user's message: what a tool finished is never dropped."""
    sent = await wire(history_of([entry([user("a"), says("", CALL), user("b"), result("c1", "late"), says("B")])]))
    assert [m["content"] for m in sent if m["role"] == "tool"] == ["late"]
    assert problems(sent) == []


async def test_a_result_without_a_call_gets_a_call() -> None:
    """Its content is worth more than the order it came in."""
    sent = await wire(history_of([entry([user("a"), result("lost", "worth"), says("b")])]))
    assert "worth" in [m["content"] for m in sent if m["role"] == "tool"]
    assert problems(sent) == []


async def test_the_same_call_id_in_two_runs_is_made_unique() -> None:
    """Some providers begin with call_0 each time; others refuse an id that is used twice."""
    one = entry([user("a"), says("", CALL), result("c1"), says("A")])
    sent = await wire(history_of([one, one, one]))
    ids = [call["id"] for m in sent for call in m.get("tool_calls") or []]
    assert ids == ["c1", "c1_2", "c1_3"]
    assert problems(sent) == []


async def test_a_checkpoint_is_history_with_its_finished_tools() -> None:
    """The reaper has nothing but the last checkpoint of a worker that died."""
    writer = Writer()
    writer.messages(
        1,
        [
            ModelRequest(parts=[UserPromptPart("a")]),
            ModelResponse(parts=[ToolCallPart("t", {}, "c1"), ToolCallPart("t", {}, "c2")]),
        ],
    )
    native = writer.finished("c1", ToolReturnPart("t", {"n": 1}, "c1"), None)
    sent = await wire(history_of([entry(native=native, state="failed")]))
    assert [m["content"] for m in sent if m["role"] == "tool"] == ['{"n":1}', NO_RESULT]
    assert problems(sent) == []


async def test_an_answer_given_through_an_output_tool_is_an_answer() -> None:
    """It must not be called interrupted."""
    native = Writer().messages(
        1,
        [
            ModelRequest(parts=[UserPromptPart("a")]),
            ModelResponse(parts=[ToolCallPart("final_result", {"name": "Bonn"}, "c1")]),
            ModelRequest(parts=[ToolReturnPart("final_result", "Final result processed.", "c1")]),
        ],
    )
    sent = await wire(history_of([entry(native=native)]))
    assert sent[-2]["content"] == ANSWERED
    assert problems(sent) == []


async def test_an_unreadable_native_form_falls_back_to_the_neutral_one() -> None:
    """A newer version of a library must not cost the session its history."""
    sent = await wire(history_of([entry([user("a"), says("A")], native=b"{}")]))
    assert [m["content"] for m in sent] == ["a", "A", "and now?"]


async def test_what_was_cut_short_unseen_is_dropped_and_what_was_seen_is_kept() -> None:
    """Half-written arguments and reasoning mean nothing to the next request; half an answer does."""
    native = Writer().messages(
        1,
        [
            ModelRequest(parts=[UserPromptPart("a")]),
            ModelResponse(
                parts=[ThinkingPart("hm"), TextPart("I will"), ToolCallPart("t", '{"x": ', "c1")], state="interrupted"
            ),
        ],
    )
    sent = await wire(history_of([entry(native=native, state="cancelled")]))
    assert [m["content"] for m in sent] == ["a", "I will [interrupted]", "and now?"]


texts = st.sampled_from(["", " ", "a", "b\nc", "ä ü", " trailing "])
ids = st.sampled_from(["c1", "c2", "c3", "call 4", "é"])
arguments = st.sampled_from([{}, {"x": 1}, "", "not json", '{"y": 2}', [1], None, 7])
results = st.sampled_from(["r", "", None, {"k": [1]}, 3.5, "[1]"])
outcomes = st.sampled_from(["success", "failed", "timeout", "interrupted", "denied", "unknown", ""])
calls = st.builds(ToolCall, call=ids, name=st.sampled_from(["t", "with space", ""]), args=arguments)
messages = st.one_of(
    st.builds(Message, role=st.just("user"), text=texts),
    st.builds(
        Message,
        role=st.just("assistant"),
        text=texts,
        calls=st.lists(calls, max_size=3, unique_by=lambda call: call.call),
        interrupted=st.booleans(),
    ),
    st.builds(Message, role=st.just("tool"), call=ids, name=st.just("t"), outcome=outcomes, result=results),
)
entries = st.builds(
    entry,
    messages=st.lists(messages, max_size=8),
    state=st.sampled_from(["completed", "failed", "cancelled"]),
)


@settings(max_examples=150)
@given(st.lists(entries, max_size=4))
async def test_any_history_is_accepted_by_openai_and_by_anthropic(past: list[HistoryEntry]) -> None:
    """However runs ended and whoever wrote them, the next prompt can be sent."""
    mended = history_of(past)
    assert problems(await wire(mended)) == []


@settings(max_examples=100)
@given(st.lists(entries, max_size=3))
async def test_mending_keeps_what_users_wrote_and_what_tools_finished(past: list[HistoryEntry]) -> None:
    """A repair may add; it never takes away."""
    mended = history_of(past)
    shown = json.dumps(await wire(mended), ensure_ascii=False)
    returned = [p for m in mended for p in m.parts if isinstance(p, ToolReturnPart) and p.content != NO_RESULT]
    given_results = [m for e in past for m in e.messages if m.role == "tool"]
    assert len(returned) == len(given_results)
    for message in (m for e in past for m in e.messages):
        if message.role == "user" and message.text.strip():
            assert json.dumps(message.text, ensure_ascii=False)[1:-1] in shown


@settings(max_examples=100)
@given(st.lists(entries, max_size=3))
async def test_mending_is_deterministic_and_a_second_time_changes_nothing(past: list[HistoryEntry]) -> None:
    """A prompt cache holds only if the same past gives the same bytes; pydantic-ai's own repair finds nothing left."""
    once = history_of(past)
    dump = ModelMessagesTypeAdapter.dump_json(once)
    assert ModelMessagesTypeAdapter.dump_json(history_of(past)) == dump
    assert ModelMessagesTypeAdapter.dump_json(mend(once)) == dump
    assert ModelMessagesTypeAdapter.dump_json(repair_messages(once)) == dump


async def test_a_clients_own_context_with_two_prompts_in_a_row_is_mended() -> None:
    """Clients send what they like; an unanswered prompt is not called answered."""
    sent = await wire(history_of([entry([user("a"), says("A"), user("b")])]))
    assert [m["content"] for m in sent] == ["a", "A", "b", NO_ANSWER, "and now?"]

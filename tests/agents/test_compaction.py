"""A conversation that is too large for its model is compacted once; what counts is kept, and the rest is said."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.exceptions import ModelContextWindowExceededError, ModelHTTPError, UnexpectedModelBehavior
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel

from holdfast.agents.compaction import WHY, compact, size_of
from holdfast.agents.overflow import is_overflow
from holdfast.domain.messages import HistoryEntry, Message
from holdfast.ports.agent import Degraded, ModelRequested, ModelRetried, ToolFinished
from tests.agents.rules import problems
from tests.agents.support import Rig
from tests.agents.test_history import MODEL
from tests.history import anthropic

LONG = 3000
WINDOW = "!status code=400 error=context_length_exceeded above="


def asks(text: Any) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def says(text: str) -> ModelResponse:
    return ModelResponse(parts=[TextPart(text)])


def calls(name: str, **args: Any) -> ModelResponse:
    return ModelResponse(parts=[TextPart("let me look"), ToolCallPart("look", args, name)])


def gives(name: str, content: Any) -> ModelRequest:
    return ModelRequest(parts=[ToolReturnPart("look", content, name)])


async def broken_rules(messages: list[ModelMessage]) -> list[str]:
    """What OpenAI or Anthropic would refuse of a request with these messages."""
    parameters = ModelRequestParameters()
    mapped = await MODEL._map_messages(MODEL.prepare_messages(messages, parameters), parameters, model_settings={})
    wire = json.loads(json.dumps(mapped))
    return [*problems(wire), *anthropic.problems(wire)]


def text_of(messages: list[ModelMessage]) -> str:
    return repr([part for message in messages for part in message.parts])


# the function


async def test_large_results_go_first_and_what_was_said_stays() -> None:
    """A result of 100 kB that was read long ago is worth less than any sentence."""
    talk = [asks("find kelp"), calls("c1"), gives("c1", "x" * LONG), says("found it"), asks("and now?")]
    done = compact(talk, 4, 1000)
    assert done is not None
    assert (done.touched, done.of) == (1, 5)
    assert [m for i, m in enumerate(done.messages) if i != 2] == [m for i, m in enumerate(talk) if i != 2]
    assert done.messages[2].parts[0].content == f"{'x' * 400} [{LONG - 400} characters left out {WHY}]"
    assert await broken_rules(done.messages) == []


async def test_whole_turns_go_when_that_is_not_enough_and_the_first_prompt_stays() -> None:
    """The first prompt says what all is about; the mark stands where the turns were, and the rules hold."""
    talk: list[ModelMessage] = [ModelRequest(parts=[SystemPromptPart("be brief"), UserPromptPart("build a boat")])]
    talk.append(says("gladly"))
    for n in range(20):
        talk += [asks(f"plank {n} " + "y" * 100), says(f"nailed {n}")]
    talk.append(asks("does it float?"))
    done = compact(talk, len(talk) - 1, 500)
    assert done is not None
    assert size_of(done.messages) <= 500
    assert done.messages[0] == talk[0]
    assert [p.content for p in done.messages[1].parts] == [f"[{done.touched} messages left out here {WHY}]"]
    assert done.messages[2:] == talk[len(talk) - len(done.messages) + 2 :]
    assert await broken_rules(done.messages) == []


async def test_prompt_of_this_run_and_the_last_results_are_never_touched() -> None:
    """What the user has just written and what the model has not yet seen is why it is asked at all."""
    prompt, last = "p" * LONG, "z" * LONG
    talk = [asks("old"), says("o" * LONG), asks(prompt), calls("c1", body="b" * LONG), gives("c1", "r" * LONG)]
    talk += [calls("c2"), gives("c2", last)]
    done = compact(talk, 2, 10)
    assert done is not None
    assert done.messages[2] == talk[2]
    assert done.messages[-2:] == talk[-2:]
    assert "r" not in done.messages[4].parts[0].content.split(" characters")[0]
    assert "b" * 100 not in text_of(done.messages)
    assert await broken_rules(done.messages) == []


async def test_steered_prompt_of_this_run_is_kept_with_the_first_one() -> None:
    """Both were written by the user in this run."""
    talk = [asks("a" * LONG), calls("c1"), gives("c1", "r" * LONG), says("so far"), asks("b" * LONG)]
    done = compact(talk, 0, 10)
    assert done is not None
    assert (done.messages[0], done.messages[4]) == (talk[0], talk[4])


async def test_files_of_earlier_turns_are_named_instead_of_sent() -> None:
    """A picture is often the largest thing in a conversation."""
    picture = BinaryContent(b"\x00" * LONG, media_type="image/png")
    talk = [asks(["what is this?", picture]), says("kelp"), asks("sure?")]
    done = compact(talk, 2, 1000)
    assert done is not None
    assert done.messages[0].parts[0].content == ["what is this?", f"[a file left out {WHY}]"]


async def test_what_cannot_shrink_is_not_compacted() -> None:
    """A prompt that is too large by itself is the user's to shorten: the same request again would only cost."""
    assert compact([asks("p" * LONG)], 0, 100) is None
    assert compact([asks("short"), says("short"), asks("p" * LONG)], 2, 100) is None


_TEXT = st.text(min_size=1, max_size=30).map(lambda text: text.strip() or "x")
_SIZE = st.sampled_from([1, 10, 700, 5000])


@st.composite
def talks(draw: st.DrawFn) -> tuple[list[ModelMessage], int]:
    """A valid session of turns with and without tools, and a run of its own behind it, up to its next request."""
    messages: list[ModelMessage] = []
    number = 0

    def steps(most: int) -> None:
        nonlocal number
        for _ in range(draw(st.integers(0, most))):
            names = [f"c{number + k}" for k in range(draw(st.integers(1, 3)))]
            number += len(names)
            body = {"body": "b" * draw(_SIZE)}
            messages.append(ModelResponse(parts=[ToolCallPart("look", body, name) for name in names]))
            results = [ToolReturnPart("look", draw(st.sampled_from(["r" * draw(_SIZE), {"k": [1]}])), n) for n in names]
            messages.append(ModelRequest(parts=results))

    for turn in range(draw(st.integers(0, 4))):
        messages.append(asks(draw(_TEXT) * draw(_SIZE)))
        steps(2)
        messages.append(says(f"{turn}" * draw(_SIZE)))
    since = len(messages)
    messages.append(asks(draw(_TEXT)))
    steps(3)
    return messages, since


@settings(max_examples=40, deadline=None)
@given(talks(), st.integers(0, 6000))
async def test_whatever_is_compacted_is_valid_smaller_and_the_same_each_time(
    talk: tuple[list[ModelMessage], int], target: int
) -> None:
    """No provider may refuse the request that was meant to save the run, and prompt caches need the same bytes."""
    messages, since = talk
    before = repr(messages)
    done = compact(messages, since, target)
    assert repr(messages) == before, "the history itself was changed"
    if done is None:
        return
    assert size_of(done.messages) < size_of(messages)
    assert 0 < done.touched <= done.of == len(messages)
    assert await broken_rules(done.messages) == await broken_rules(messages) == []
    assert done.messages[-1] == messages[-1]
    own = len(messages) - since
    assert done.messages[-own].parts[-1] == messages[since].parts[-1], "the prompt of this run"
    again = compact(messages, since, target)
    assert again is not None
    assert repr(again.messages) == repr(done.messages)


def test_size_of_the_work_grows_with_the_conversation_and_not_faster() -> None:
    """Compaction runs on the loop that serves every run: thousands of messages are walked through a few times."""
    reads = 0

    class Counted(UserPromptPart):
        def __getattribute__(self, name: str) -> Any:
            nonlocal reads
            reads += name == "content"
            return super().__getattribute__(name)

    for turns in (200, 2000):
        reads = 0
        talk: list[ModelMessage] = []
        for n in range(turns):
            talk += [ModelRequest(parts=[Counted(f"{n} " + "w" * 50)]), says("ok")]
        talk.append(asks("now?"))
        assert compact(talk, len(talk) - 1, 1000) is not None
        assert reads < 60 * turns, reads


@pytest.mark.parametrize(
    ("status", "body", "kind", "expected"),
    [
        (400, {"type": "exceed_context_size_error", "message": "too many"}, "exceed_context_size_error", True),
        (400, {"message": "the request exceeds the available context size, try increasing it"}, None, True),
        (400, {"message": "max_tokens is too large"}, None, False),
        (500, {"message": "context length exceeded"}, None, False),
    ],
)
def test_overflow_is_known_by_the_words_of_local_servers_too(
    status: int, body: dict[str, Any], kind: str | None, expected: bool
) -> None:
    """llama.cpp's own server says it in another form than OpenAI."""
    assert is_overflow(ModelHTTPError(status, "m", body, provider_error_type=kind)) is expected


# the run


def earlier(words: int, turns: int = 3) -> list[HistoryEntry]:
    """Runs of the session before this one."""
    said = [Message(role="user", text="kelp " * words), Message(role="assistant", text="seen " * words)]
    return [HistoryEntry(f"r_{n}", "completed", said, "", b"", []) for n in range(turns)]


async def test_run_whose_session_outgrew_the_model_goes_on_with_less(rig: Rig) -> None:
    """The user sees what happened, the answer comes, and the session's history is not part of the loss."""
    told = await rig.run(f"{WINDOW}700", "!say fits now", history=earlier(200))
    assert told.result.output == "fits now"
    kinds = [type(event) for event in told.events]
    assert kinds[:4] == [ModelRequested, Degraded, ModelRetried, ModelRequested]
    degraded, retried = told.events[1], told.events[2]
    assert degraded.what == "context"
    assert "messages of 7 were compacted" in degraded.why
    assert (retried.reason, retried.attempt, retried.wait_ms) == ("context_window", 1, 0)
    assert rig.stats["requests"] == 2
    assert len(rig.sent(0)) == 7
    assert problems(rig.sent(1)) == anthropic.problems(rig.sent(1)) == []
    assert rig.sent(1)[-1] == rig.sent(0)[-1]
    assert "left out" not in told.result.native.decode()


async def test_later_requests_of_the_run_are_compacted_before_they_are_refused(rig: Rig) -> None:
    """One refusal teaches the run; a loop of fifty steps must not cost fifty more."""

    async def look() -> str:
        return "a small thing"

    told = await rig.run("!tool look", "!tool look", "!say done", history=[], tools=[look])
    assert told.result.output == "done"
    lines = ("!tool look", f"{WINDOW}700", "!tool look", f"{WINDOW}700", "!say done")
    told = await rig.run(f"{WINDOW}700", *lines, history=earlier(200), tools=[look])
    assert told.result.output == "done"
    assert len(told.of(ModelRetried)) == 1
    assert len(told.of(Degraded)) == 3
    assert all(problems(rig.sent(at)) == [] for at in range(-3, 0))


async def test_results_of_earlier_steps_make_room_for_the_last(rig: Rig) -> None:
    """Most overflows happen inside one run: each tool brought more than the last."""

    async def look(n: int) -> str:
        return f"result {n}: " + "word " * 300

    lines = ['!tool look {"n": 1}', "!think n=1", '!tool look {"n": 2}', f"{WINDOW}500"]
    lines += ['!tool look {"n": 3}', f"{WINDOW}500", "!say done"]
    told = await rig.run(*lines, tools=[look])
    assert told.result.output == "done", told.ended
    results = [m["content"] for m in rig.sent() if m["role"] == "tool"]
    assert len(results) == 3
    assert "left out" in results[0]
    assert results[-1] == "result 3: " + "word " * 300
    assert problems(rig.sent()) == []
    assert [e.result.count("word") for e in told.of(ToolFinished)] == [300, 300, 300], "the log has them whole"


async def test_run_ends_with_a_clear_error_when_it_does_not_fit_the_second_time(rig: Rig) -> None:
    """Two requests and no more; the error says what to do."""
    told = await rig.run(f"{WINDOW}5", history=earlier(200))
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == ("model_error", "model_context_window")
    assert "new session" in told.ended.remedy
    assert rig.stats["requests"] == 2
    assert len(told.of(Degraded)) == 1


@pytest.mark.parametrize("line", [f"{WINDOW}5", "!error_in_stream after=0 error=context_length_exceeded"])
async def test_prompt_that_is_too_large_alone_ends_at_once(rig: Rig, line: str) -> None:
    """Nothing can be left out, so nothing is repeated; said in the headers or in the stream."""
    told = await rig.run(line, "word " * 500)
    assert told.ended is not None
    assert (told.ended.reason, told.ended.code) == ("model_error", "model_context_window")
    assert rig.stats["requests"] == 1
    assert told.of(Degraded, ModelRetried) == []


async def test_stream_that_ends_before_its_first_chunk_is_asked_for_its_reason(rig: Rig) -> None:
    """llama.cpp's Python server refuses a request that is too large by hanging up; only a whole answer says why."""
    asked: list[tuple[str, int, Any]] = []

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        asked.append(("stream", len(messages), (info.model_settings or {}).get("max_tokens")))
        if size_of(messages) > 5000:
            raise UnexpectedModelBehavior("Streamed response ended without content or tool calls")
        yield "fits"

    async def whole(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(("whole", len(messages), (info.model_settings or {}).get("max_tokens")))
        body = {"message": "maximum context length is 10 tokens", "code": "context_length_exceeded"}
        raise ModelHTTPError.for_category(ModelContextWindowExceededError, status_code=400, model_name="m", body=body)

    rig.model = FunctionModel(whole, stream_function=stream)
    told = await rig.run("now?", history=earlier(400))
    assert told.result.output == "fits"
    assert asked == [("stream", 7, None), ("whole", 7, 1), ("stream", 7, None)]
    assert [event.reason for event in told.of(ModelRetried)] == ["empty_stream", "context_window"]


async def test_stream_that_ends_before_its_first_chunk_for_no_reason_ends_as_that(rig: Rig) -> None:
    """Nothing is left out of a conversation that fits."""
    told = await rig.run("!truncate after=0", history=earlier(200))
    assert told.ended is not None
    assert told.ended.code == "model_bad_response"
    assert told.of(Degraded) == []

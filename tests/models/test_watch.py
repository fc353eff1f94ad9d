"""Content counts, bytes do not; and only the model's own time."""

import asyncio
from collections.abc import AsyncIterator

import looptime
import pytest
from pydantic_ai.messages import (
    BinaryContent,
    FilePart,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)

from holdfast.models.errors import ModelStalled
from holdfast.models.watch import Watch, is_content
from holdfast.ports.probe import Probe


@pytest.fixture(autouse=True)
async def virtual_time() -> AsyncIterator[None]:
    """The limits are waited for in virtual time. Not looptime's plugin: it leaves a loop behind in sync tests."""
    loop = looptime.patch_event_loop(asyncio.get_running_loop(), _enabled=False)
    loop.setup_looptime()
    with loop.looptime_enabled():
        yield


EMPTY = [
    PartStartEvent(index=0, part=TextPart("")),
    PartStartEvent(index=0, part=ThinkingPart("")),
    PartDeltaEvent(index=0, delta=TextPartDelta("")),
    PartDeltaEvent(index=0, delta=ThinkingPartDelta()),
    PartDeltaEvent(index=0, delta=ToolCallPartDelta(tool_call_id="c")),
    PartEndEvent(index=0, part=TextPart("whole")),
]
CONTENT = [
    PartStartEvent(index=0, part=TextPart("a")),
    PartStartEvent(index=0, part=ThinkingPart("a")),
    PartStartEvent(index=0, part=ToolCallPart("t", tool_call_id="c1")),
    PartStartEvent(index=0, part=FilePart(BinaryContent(b"x", media_type="image/png"))),
    PartDeltaEvent(index=0, delta=TextPartDelta("a")),
    PartDeltaEvent(index=0, delta=ThinkingPartDelta(content_delta="a")),
    PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta="{")),
]


@pytest.mark.parametrize("event", EMPTY, ids=repr)
async def test_an_empty_event_is_no_content(event: ModelResponseStreamEvent) -> None:
    """A server that sends empty chunks to keep the line open must not look alive."""
    assert not is_content(event)


@pytest.mark.parametrize("event", CONTENT, ids=repr)
async def test_text_reasoning_and_calls_are_content(event: ModelResponseStreamEvent) -> None:
    """Whoever thinks or writes arguments is not silent."""
    assert is_content(event)


async def every(pause_s: float, events: list[ModelResponseStreamEvent]) -> AsyncIterator[ModelResponseStreamEvent]:
    for event in events:
        await asyncio.sleep(pause_s)
        yield event


def watch(first_s: float = 0.1, idle_s: float = 0.1, request_s: float = 9.0) -> Watch:
    return Watch("m", Probe(), first_s, idle_s, request_s)


async def test_empty_events_do_not_put_off_the_first_content_limit() -> None:
    """Silence adds up over events that bring nothing."""
    with pytest.raises(ModelStalled) as raised:
        async for _ in watch().events(every(0.03, EMPTY[:1] * 50)):
            pass
    assert raised.value.code == "model_first_content_timeout"


async def test_empty_events_do_not_put_off_the_idle_limit() -> None:
    """Between contents, too."""
    with pytest.raises(ModelStalled) as raised:
        async for _ in watch().events(every(0.03, [CONTENT[0], *EMPTY[:1] * 50])):
            pass
    assert raised.value.code == "model_idle_timeout"


async def test_content_puts_the_idle_limit_off_again_and_again() -> None:
    """A slow answer is an answer."""
    seen = [event async for event in watch().events(every(0.04, CONTENT[4:5] * 6))]
    assert len(seen) == 6


async def test_the_request_limit_is_not_put_off_by_content() -> None:
    """A model that repeats itself for ever ends as well."""
    with pytest.raises(ModelStalled) as raised:
        async for _ in watch(request_s=0.2).events(every(0.03, CONTENT[4:5] * 50)):
            pass
    assert raised.value.code == "model_request_timeout"


async def test_a_readers_pause_counts_for_no_limit() -> None:
    """The appender may wait for a store; the model is not to blame."""
    count = 0
    async for _ in watch(request_s=0.3).events(every(0.01, CONTENT[4:5] * 4)):
        await asyncio.sleep(0.15)
        count += 1
    assert count == 4


async def test_a_timeout_of_the_upstreams_own_is_not_taken_for_ours() -> None:
    """Its message is the better one."""

    async def failing() -> AsyncIterator[ModelResponseStreamEvent]:
        yield CONTENT[0]
        raise TimeoutError("theirs")

    with pytest.raises(TimeoutError, match="theirs"):
        async for _ in watch().events(failing()):
            pass

"""A tool's own words: in order, whole up to a limit, at a bounded rate, and never at the tool's cost."""

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator

import looptime
import pytest_asyncio

from holdfast.ports.agent import ToolProgress
from holdfast.tools import Reporter, progress, reporting


@pytest_asyncio.fixture
async def virtual() -> AsyncIterator[None]:
    """Time passes when nothing else is to be done."""
    loop = looptime.patch_event_loop(asyncio.get_running_loop(), _enabled=False)
    loop.setup_looptime()
    with loop.looptime_enabled():
        yield


class Taken:
    """Who takes events, or has no room for them."""

    def __init__(self, room: bool = True) -> None:
        self.room = room
        self.events: list[tuple[float, ToolProgress]] = []

    def offer(self, event: ToolProgress) -> bool:
        if self.room:
            self.events.append((asyncio.get_running_loop().time(), event))
        return self.room

    @property
    def text(self) -> str:
        return "".join(event.text for _, event in self.events)


async def test_what_is_said_is_told_whole_in_order_and_ten_times_a_second_at_most(virtual: None) -> None:
    """F33 and F60: a build that prints a thousand lines a second is ten events a second."""
    taken = Taken()
    reporter = Reporter("c", 1_000_000, taken.offer)
    said = ""
    with reporting(reporter):
        for n in range(1000):
            progress(f"line {n}\n")
            said += f"line {n}\n"
            await asyncio.sleep(0.001)
    last = reporter.close()
    assert taken.text + (last.text if last else "") == said
    assert 8 <= len(taken.events) <= 12
    at = [when for when, _ in taken.events]
    assert at[0] < 0.01, "the first word goes at once"
    assert min(b - a for a, b in itertools.pairwise(at)) >= 0.0999


async def test_a_call_says_no_more_than_its_limit_and_the_rest_is_counted(virtual: None) -> None:
    """A log that a tool can fill is a store that a tool can stop."""
    taken = Taken()
    reporter = Reporter("c", 1000, taken.offer)
    for _ in range(50):
        reporter.say("é" * 50)
        await asyncio.sleep(0.01)
    last = reporter.close()
    assert last is not None
    assert len((taken.text + last.text).encode()) == 1000
    marks = [event for _, event in taken.events if event.truncated]
    assert len(marks) == 1
    assert (last.truncated, last.bytes) == (True, 5000)


async def test_words_wait_while_nobody_has_room_and_none_is_lost(virtual: None) -> None:
    """A slow store makes events rarer, not the tool slower."""
    taken = Taken(room=False)
    reporter = Reporter("c", 1000, taken.offer)
    for n in range(10):
        reporter.say(str(n))
        await asyncio.sleep(0.1)
    assert taken.events == []
    taken.room = True
    await asyncio.sleep(0.3)
    assert taken.text == "0123456789"


async def test_after_the_call_nothing_is_told(virtual: None) -> None:
    """A thread that outlived its run speaks to nobody."""
    taken = Taken()
    reporter = Reporter("c", 1000, taken.offer)
    reporter.say("before")
    last = reporter.close()
    assert last is not None
    assert last.text == "before"
    reporter.say("after")
    await asyncio.sleep(1)
    assert taken.events == []
    assert reporter.close() is None


async def test_outside_a_call_nothing_happens() -> None:
    """The same function may be called by a test or a script."""
    progress("hello")


async def test_threads_may_speak_and_are_not_held_up() -> None:
    """A sync tool is in a thread; a lock held for long there would be the loop's too."""
    taken = Taken()
    reporter = Reporter("c", 10_000_000, taken.offer)
    took: list[float] = []

    def work(name: str) -> None:
        began = time.thread_time()
        for n in range(2000):
            reporter.say(f"{name}{n} ")
        took.append(time.thread_time() - began)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    async with asyncio.timeout(8):
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
    last = reporter.close()
    words = (taken.text + (last.text if last else "")).split()
    assert [w for w in words if w[0] == "a"] == [f"a{n}" for n in range(2000)]
    assert [w for w in words if w[0] == "b"] == [f"b{n}" for n in range(2000)]
    assert max(took) < 2.0

"""The terminal page over a real gateway, with a worker that does what the test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from holdfast.client import AsyncClient, Backoff, ServerUnreachable
from holdfast.domain.events import EventType
from holdfast.domain.runs import Reason, State
from holdfast.testing import build
from holdfast.tui import ChatApp
from holdfast.tui.dialogs import Behind, Choose, Decide
from holdfast.tui.prompt import Prompt
from tests.gateway.support import Site, site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(30)]
LIMIT_S = 8.0


class Page:
    """The page, and what one sees and does there."""

    def __init__(self, app: ChatApp, pilot: Pilot[str]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def text(self) -> str:
        """All that is on the page, scrolled to or not; questions over it, too."""
        shown = [each for screen in self.app.screen_stack for each in screen.query(Static)]
        return "\n".join(str(each.render()) for each in shown if each.display)

    async def until(self, holds: Callable[[], Any] | str) -> None:
        """Wait until a text is there, or a condition holds."""
        for _ in range(int(LIMIT_S / 0.02)):
            if (holds in self.text) if isinstance(holds, str) else holds():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"never: {holds} in\n{self.text}")

    async def ask(self, text: str) -> None:
        self.app.screen_stack[0].query_one(Prompt).insert(text)
        await self.pilot.press("enter")


@asynccontextmanager
async def opened(here: Site, session: str | None = None) -> AsyncIterator[Page]:
    client = AsyncClient(here.url, busy_s=0, backoff=Backoff(first_s=0.05, max_s=0.1))
    app = ChatApp(client, session)
    async with app.run_test(size=(100, 30)) as pilot:
        yield Page(app, pilot)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as made:
        yield made


async def test_a_run_is_shown_while_it_lives(here: Site) -> None:
    """Reasoning, text, a tool with its arguments, output and result, and what the run does now."""
    async with opened(here) as page:
        await page.ask("What is [bold]holding[/bold]? 世界 🐋")
        holder = await here.claim()
        await page.until("What is [bold]holding[/bold]? 世界 🐋")  # nothing that is said is markup
        await holder.append((EventType.REASONING_DELTA, {"part": 0, "text": "hm"}), build.text(1, "Rocks\x1b[31m, "))
        await page.until("answering; ")
        await page.until("Rocks\ufffd[31m, ")
        await holder.append(build.tool_called("c1", "dive", where="sea"))
        await page.until("running dive; ")
        await holder.append((EventType.TOOL_PROGRESS, {"call": "c1", "text": "10 m\n20 m\n"}))
        await page.until("20 m")
        await holder.append(build.tool_finished("c1", "a wreck", "dive"), build.text(2, "mostly."))
        await here.complete(holder, "")
        await page.until("success after 3 ms\n  10 m\n  20 m\n  a wreck")
        await page.until(lambda: "mostly." in page.text and "last progress" not in page.text)


async def test_escape_stops_the_run_once_and_the_page_stays_free(here: Site) -> None:
    """F19: the first stops, the second says so, idle it does nothing; typing goes on meanwhile."""
    async with opened(here) as page:
        await page.pilot.press("escape")
        await page.ask("stop me")
        holder = await here.claim()
        await page.until("starting; ")
        await page.pilot.press("escape")
        assert "stopping; " in page.text  # before the server has answered
        await page.pilot.press("escape", "n", "e", "x", "t")
        assert page.app.screen_stack[0].query_one(Prompt).text == "next"
        await here.obey(holder)
        await page.until("cancelled: stopped")
        await page.pilot.press("escape", "enter")
        await here.complete(await here.claim(), "an answer")
        await page.until("an answer")
        assert page.app.return_code is None


async def test_interrupt_stops_as_escape_does_and_twice_at_rest_leaves(here: Site) -> None:
    """F19: Ctrl-C the same; nobody is thrown out who meant to stop."""
    async with opened(here) as page:
        await page.ask("stop me")
        holder = await here.claim()
        await page.until("starting; ")
        await page.pilot.press("ctrl+c")
        await here.obey(holder)
        await page.until("cancelled: stopped")
        page.app._pressed_at = 0.0  # some time later
        await page.ask("")
        await page.pilot.press("x", "ctrl+c")
        assert page.app.screen_stack[0].query_one(Prompt).text == ""
        await page.pilot.press("ctrl+c")
    assert page.app.return_value == holder.claim.session


async def test_a_session_is_come_back_to_with_what_runs_in_it(here: Site) -> None:
    """F49: attach, detach, resume: what was said, then the run from its first event."""
    async with opened(here) as page:
        await page.ask("first")
        holder = await here.claim()
        await holder.say("one")
        await here.complete(holder, "one")
        await page.until("one")
        await page.ask("second")
        holder = await here.claim()
        await holder.say("two ")
        await page.until("two ")
        await page.pilot.press("ctrl+d")
    session = page.app.return_value
    async with opened(here, session) as page:
        await page.until("two ")
        assert "first" in page.text
        assert "one" in page.text
        await holder.say("three")
        await here.complete(holder, "")
        await page.until("two three")
        assert page.text.count("second") == 1
        await page.pilot.press("ctrl+n")
        await page.until("new session")
        assert "second" not in page.text
        await page.pilot.press("ctrl+o")
        await page.until(lambda: isinstance(page.app.screen, Choose))
        await page.pilot.press("enter")
        await page.until("two three")


async def test_a_prompt_while_a_run_works_waits_where_one_sees_it(here: Site) -> None:
    """F24: behind the run, and answered after it; what somebody else asks appears, too."""
    async with opened(here) as page:
        await page.pilot.press("ctrl+t")
        await page.ask("active")
        holder = await here.claim()
        await page.until("starting; ")
        await page.ask("behind")
        await page.until("waiting 1. behind")
        await here.complete(holder, "")
        await here.complete(await here.claim(), "after")
        await page.until("after")
        await here.run("from another tab", session=holder.claim.session)
        await page.app._look()
        await page.until("from another tab")
        await here.complete(await here.claim(), "")


async def test_what_waits_is_edited_and_removed(here: Site) -> None:
    """Whoever sees a mistake in what waits would else have to leave the terminal for it, or to wait for its answer."""
    long = "wrong " + "x" * 3000
    async with opened(here) as page:
        await page.ask("first")
        holder = await here.claim()
        await page.until("starting; ")
        session = (await here.http.get("/api/runs")).json()["runs"][0]["session"]
        for text in (long, "not at all"):
            body = {"input": text, "session": session, "on_busy": "enqueue"}
            assert (await here.http.post("/api/runs", json=body)).status_code == 201

        async def inputs() -> list[str]:
            queue = (await here.http.get(f"/api/sessions/{session}")).json()["queue"]
            return [(await here.http.get(f"/api/runs/{each['id']}")).json()["input"] for each in queue]

        async def until_inputs(*wanted: str) -> None:
            async with asyncio.timeout(LIMIT_S):
                while await inputs() != list(wanted):
                    await asyncio.sleep(0.02)

        await page.app._look()
        await page.until("waiting 2. not at all")
        await page.pilot.press("ctrl+r")
        await page.until(lambda: isinstance(page.app.screen, Behind))
        await page.pilot.press("escape")
        await page.until(lambda: not isinstance(page.app.screen, Behind))
        await until_inputs(long, "not at all")

        await page.pilot.press("ctrl+r")
        await page.until(lambda: isinstance(page.app.screen, Behind))
        await page.pilot.press("enter")
        await page.until(lambda: page.app.screen.query(Prompt))
        box = page.app.screen.query_one(Prompt)
        assert box.text == long, "all of it, not what a list shows"
        box.text = "right"
        await page.pilot.press("enter")
        await until_inputs("right", "not at all")
        await page.until("waiting 1. right")

        await page.pilot.press("ctrl+r")
        await page.until(lambda: isinstance(page.app.screen, Behind))
        await page.pilot.press("down", "d")
        await until_inputs("right")
        await page.until(lambda: "waiting 2." not in page.text)
        await page.until("cancelled: stopped")
        runs = (await here.http.get("/api/runs")).json()["runs"]
        assert len(runs) == 3, "nothing was sent as a prompt of its own"
        await here.complete(holder, "an answer")
        second = await here.claim()
        assert second.claim.spec.input == "right"
        await here.complete(second, "done")


async def test_a_waiting_run_is_decided_with_y_or_n_and_later(here: Site) -> None:
    """A question does not block the page, and leaving it open is an answer, too."""
    async with opened(here) as page:
        await page.ask("ask me")
        holder = await here.claim()
        await holder.append(build.tool_called("c1", "look"))
        await holder.park()
        await page.until(lambda: isinstance(page.app.screen, Decide))
        await page.until("May look run?")
        await page.until("look {}  needs a decision")  # it was called, and does not run
        await page.until("waiting for a decision; ")
        await page.pilot.press("escape")
        await page.until("not decided")
        assert (await here.store.get(holder.key)).stopping is None
        await page.pilot.press("ctrl+y", "y")
        await page.until("decided: 1 approved, 0 denied")
        await here.complete(await here.claim(), "done")
        await page.until("done")


async def test_disconnected_is_not_stopped(here: Site) -> None:
    """The line says so while it is so; nothing is missing afterwards."""
    async with opened(here) as page:
        await page.ask("x")
        holder = await here.claim()
        await holder.say("before ")
        await page.until("before ")
        port, view = here.server.port, page.app._active()
        assert view is not None
        here.app.close_readers()
        await here.server.stop(0.1)
        await page.until("disconnected, the run is not stopped; it was answering")
        await page.ask("not lost")
        await page.until(lambda: page.app.screen_stack[0].query_one(Prompt).text == "not lost")
        await page.pilot.press("escape")  # nobody hears it yet, and it is not forgotten
        await page.until(lambda: view.wish)
        await holder.say("meanwhile")
        here.app._gate.closing = False
        here.server = type(here.server)(here.app, "127.0.0.1", port, connections=64, log=here.log)
        await here.server.start()
        await page.until("before meanwhile")
        await here.obey(holder)
        await page.until("cancelled: stopped")


async def test_a_prompt_that_got_no_answer_is_sent_again_without_a_second_run(here: Site) -> None:
    """The answer was lost, the run was not; the prompt is still in the box."""
    async with opened(here) as page:
        start = page.app._client.start

        async def cut(*args: Any, **more: Any) -> Any:
            await start(*args, **more)
            page.app._client.start = start  # type: ignore[method-assign]
            raise ServerUnreachable(here.url, "cut")

        page.app._client.start = cut  # type: ignore[method-assign]
        await page.ask("once")
        await page.until(lambda: page.app._prompt.text == "once")
        await page.pilot.press("enter")
        holder = await here.claim()
        await page.until("starting; ")
        assert len((await here.http.get("/api/runs")).json()["runs"]) == 1
        await here.complete(holder, "")


async def test_a_long_answer_is_whole(here: Site) -> None:
    """In blocks, so that a page of 20,000 tokens answers keys as one of 20 does."""
    words = "".join(f"t{n} " for n in range(3000))
    lines = "".join(f"line {n}\n" for n in range(500))
    async with opened(here) as page:
        await page.ask("long")
        holder = await here.claim()
        for text in (words, lines):
            await holder.append(*(build.text(0, text[at : at + 500]) for at in range(0, len(text), 500)))
        await here.complete(holder, "")
        await page.until("line 499")
        blocks = [str(each.render()) for each in page.app.query(".answer").results(Static)]
        assert "".join(blocks).replace("\n", "") == (words + lines).replace("\n", "")
        assert max(map(len, blocks)) <= 2000


async def test_a_failure_says_its_reason_and_remedy(here: Site) -> None:
    """As everywhere."""
    async with opened(here) as page:
        await page.ask("fail")
        holder = await here.claim()
        error = {
            "code": "model_connect",
            "message": "no answer",
            "cause": None,
            "retryable": True,
            "remedy": "start it",
        }
        drafts = [(EventType.RUN_FAILED, {"reason": "model_error", "error": error})]
        await here.end(holder, drafts, State.FAILED, Reason.MODEL_ERROR, error=error)
        await page.until("failed: model_error\nmodel_connect: no answer\nstart it")


async def test_lines_that_are_pasted_or_typed_are_kept(here: Site) -> None:
    """Pasted text is not sent at its first line break; a new line stands where it was typed, however fast."""
    from textual import events

    async with opened(here) as page:
        prompt = page.app.query_one(Prompt)
        page.app.post_message(events.Paste("one\ntwo\nthree"))
        await page.until(lambda: prompt.text == "one\ntwo\nthree")
        for name in ("ctrl+j", "x", "backspace", "backspace"):
            page.app.post_message(events.Key(name, None if len(name) > 1 else name))
        await page.until(lambda: prompt.text == "one\ntwo\nthree")
        await page.pilot.press("enter")
        holder = await here.claim()
        assert holder.claim.spec.input == "one\ntwo\nthree"
        await here.complete(holder, "whole")
        await page.until("whole")
        await page.pilot.press("up")
        assert prompt.text == "one\ntwo\nthree"

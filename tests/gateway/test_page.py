"""The page, in a real browser: what a person sees while a run lives, ends, is stopped, or is out of reach."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.domain.events import EventType
from holdfast.domain.runs import Reason, State
from holdfast.testing import build
from tests.gateway.browser import Browser, browser
from tests.gateway.support import Site, site

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
PICTURES = os.environ.get("HOLDFAST_TEST_PICTURES", "")

LAST = "document.querySelector('article:last-of-type')"
LIVE = f"{LAST}.querySelector('.live').textContent"
HOSTILE = '<img src=x onerror="window.bad=1"><script>window.bad=1</script>'


@pytest.fixture
async def tab() -> AsyncIterator[Browser]:
    async with browser() as made:
        yield made
        assert made.problems == []


async def picture(tab: Browser, name: str) -> None:
    if PICTURES:
        await tab.picture(Path(PICTURES) / f"{name}.png")


async def ask(tab: Browser, text: str) -> None:
    await tab.until("!document.getElementById('send').disabled")
    await tab.press(text)


async def test_a_run_is_shown_while_it_lives(here: Site, tab: Browser) -> None:
    """Enter asks; reasoning folded away, text as it comes, a tool with its arguments, result and time."""
    await tab.open(here.url)
    await ask(tab, "What is holding?")
    holder = await here.claim()
    await holder.append((EventType.REASONING_DELTA, {"part": 0, "text": "let me think"}), build.text(1, "Rocks, "))
    await tab.until(f"{LAST}.innerText.includes('Rocks, ')")
    assert await tab.js(f"{LAST}.querySelector('details').open") is False
    assert "let me think" in await tab.js(f"{LAST}.querySelector('details').textContent")
    await holder.append(build.tool_called("c1", "look_up", where="sea"))
    await tab.until(f"{LAST}.querySelector('.tool')")
    await tab.js(f"{LAST}.querySelector('.tool').open = true")
    await tab.until(f"{LAST}.querySelector('.tool .how').textContent === 'running'")
    assert '"where": "sea"' in await tab.js(f"{LAST}.querySelector('.tool').textContent")
    assert "working" in await tab.until(f"{LAST}.querySelector('.live:not([hidden])')?.textContent")
    assert re.search(r"last progress \d+ s ago", await tab.js(f"{LAST}.querySelector('.live').textContent"))
    await picture(tab, "live")
    await holder.append(build.tool_finished("c1", {"depth": 12}, "look_up"), build.text(2, "mostly."))
    await here.complete(holder, "Rocks, mostly.")
    await tab.until(f"{LAST}.querySelector('.live').hidden")
    assert "success after 3 ms" in await tab.js(f"{LAST}.querySelector('.tool').textContent")
    await tab.until("document.getElementById('stop').disabled")
    await tab.until("document.getElementById('spoken').textContent === 'Answer complete.'")
    await picture(tab, "completed")


async def test_a_run_that_waits_says_on_what_and_when_that_ends(here: Site, tab: Browser) -> None:
    """F82: never "working" without progress; the notice is not progress itself, and is gone with the next event."""
    await tab.open(here.url)
    await ask(tab, "Wait.")
    holder = await here.claim()
    notice = {"waiting_on": "tool dive", "since_ms": 65_000, "fires": "tool_timeout", "fires_in_ms": 55_000}
    await holder.append(build.text(0, "Diving. "), (EventType.RUN_STALLED, notice))
    said = await tab.until(f"{LAST}.querySelector('.live')?.textContent.includes('waiting on') && {LIVE}")
    assert re.search(r"waiting on tool dive; ends in (4|5)\d(\.\d)? s at the latest \(tool_timeout\)", said), said
    assert re.search(r"last progress (6[5-9]|7\d) s ago", said), said
    await holder.append(build.text(0, "Back."))
    assert "working" in await tab.until(f"!{LIVE}.includes('waiting on') && {LIVE}")
    await here.complete(holder, "Diving. Back.")


async def test_stop_shows_the_receipt_in_words(here: Site, tab: Browser) -> None:
    """What was stopped, when, and what could not be."""
    await tab.open(here.url)
    await ask(tab, "sleep")
    holder = await here.claim()
    await holder.append(build.text(0, "Sleeping."), build.tool_called("c1", "sleep"))
    await tab.until("!document.getElementById('stop').disabled")
    await tab.js("document.getElementById('stop').click()")
    await here.until(holder.key, lambda r: r.stopping is not None)
    receipt = {
        "requested_at": "2026-01-01T00:00:00.000Z", "ended_at": "2026-01-01T00:00:00.012Z", "elapsed_ms": 12,
        "upstream_closed_ms": 3, "tools": [{"call": "c1", "name": "sleep", "ended": "cancelled"}],
        "abandoned": False, "by": "worker",
    }  # fmt: skip
    fields = {"reason": "stopped", "by": "client", "partial": "", "usage": {}, "receipt": receipt}
    drafts = [(EventType.RUN_CANCELLED, fields)]
    await here.end(holder, drafts, State.CANCELLED, Reason.STOPPED, receipt=receipt)
    words = "Stopped in 12 ms; model connection closed after 3 ms; tool sleep: cancelled."
    await tab.until(f"{LAST}.querySelector('.end')?.textContent === {words!r}")
    assert await tab.js("document.getElementById('offline').hidden") is True
    await picture(tab, "stopped")
    await tab.reload()
    await tab.until(f"{LAST}?.querySelector('.end')?.textContent === {words!r}")
    assert "Sleeping." in await tab.js(f"{LAST}.innerText")


async def test_a_reload_resumes_where_the_run_is(here: Site, tab: Browser) -> None:
    """History, then the active run from its first event; nothing twice."""
    await tab.open(here.url)
    await ask(tab, "first")
    holder = await here.claim()
    await holder.say("one")
    await here.complete(holder, "one")
    await tab.until(f"{LAST}?.innerText.includes('one')")
    await ask(tab, "second")
    holder = await here.claim()
    await holder.say("two ")
    await tab.until(f"{LAST}.innerText.includes('two ')")
    await tab.reload()
    await tab.until(f"{LAST}?.innerText.includes('two ')")
    await holder.say("three")
    await here.complete(holder, "two three")
    await tab.until(f"{LAST}.innerText.includes('two three')")
    said = await tab.js("[...document.querySelectorAll('.said')].map(e => e.textContent).join('|')")
    assert said == "first|one|second|two three"
    await tab.open("about:blank")
    await tab.open(here.url)  # without the hash: the browser remembers
    await tab.until(f"{LAST}?.innerText.includes('two three')")


async def test_what_waits_is_shown_and_can_be_removed(here: Site, tab: Browser) -> None:
    """The queue behind the active run, in order."""
    await tab.open(here.url)
    await tab.js("document.getElementById('busy').value = 'enqueue'")
    await ask(tab, "active")
    holder = await here.claim()
    await tab.until("!document.getElementById('stop').disabled")
    for text in ("next", "after that"):
        await ask(tab, text)
        await tab.until(f"document.getElementById('queue').innerText.includes({text!r})")
    items = "[...document.querySelectorAll('#queue li')].map(e => e.firstChild.textContent).join('|')"
    assert await tab.js(items) == "next|after that"
    await picture(tab, "queue")
    await tab.js("document.querySelector('#queue li button').click()")
    await tab.until(f"{items} === 'after that'")
    await here.complete(holder, "")
    await here.claim()
    await tab.until("document.getElementById('queue').hidden")
    await tab.until(f"{LAST}.innerText.includes('after that')")


async def test_disconnected_is_not_stopped(here: Site, tab: Browser) -> None:
    """The banner says that the run goes on; when the line is back, nothing is missing."""
    await tab.open(here.url)
    await ask(tab, "x")
    holder = await here.claim()
    await holder.say("before ")
    await tab.until(f"{LAST}?.innerText.includes('before ')")
    here.app.close_readers()
    here.app._gate.closing = False
    await tab.offline(True)
    await tab.until("!document.getElementById('offline').hidden")
    assert "Disconnected, retrying" in await tab.js("document.getElementById('offline').textContent")
    assert await tab.js(f"{LAST}.querySelector('.end')") is None
    await picture(tab, "disconnected")
    await holder.say("meanwhile ")
    await tab.offline(False)
    await tab.until("document.getElementById('offline').hidden")
    await here.complete(holder, "")
    await tab.until(f"{LAST}.innerText.includes('before meanwhile ')")


async def test_nothing_that_is_said_becomes_markup(here: Site, tab: Browser) -> None:
    """Models, tools and users say what they like; the page shows it as text."""
    await tab.open(here.url)
    await ask(tab, HOSTILE)
    holder = await here.claim()
    await holder.append(
        build.text(0, HOSTILE),
        (EventType.REASONING_DELTA, {"part": 1, "text": HOSTILE}),
        build.tool_called("c1", HOSTILE, a=HOSTILE),
        build.tool_finished("c1", HOSTILE, HOSTILE),
        (EventType.DEGRADED, {"what": HOSTILE, "why": HOSTILE}),
    )
    error = {"code": "c", "message": HOSTILE, "cause": None, "retryable": False, "remedy": HOSTILE}
    drafts = [(EventType.RUN_FAILED, {"reason": "agent_error", "error": error})]
    await here.end(holder, drafts, State.FAILED, Reason.AGENT_ERROR, error=error)
    await tab.until(f"{LAST}.querySelector('.end.failed')")
    assert await tab.js("document.querySelectorAll('#log img, #log script').length") == 0
    assert await tab.js("window.bad === undefined") is True
    await picture(tab, "hostile")


async def test_sessions_are_switched_and_made_anew(here: Site, tab: Browser) -> None:
    """Each has its own conversation; the address names it."""
    await tab.open(here.url)
    for text in ("in one", "in two"):
        await tab.js("document.getElementById('new').click()")
        await ask(tab, text)
        holder = await here.claim()
        await here.complete(holder, "")
        await tab.until(f"{LAST}?.innerText.includes({text!r}) && location.hash.startsWith('#s=')")
    assert "in one" not in await tab.js("document.getElementById('log').innerText")
    await tab.until("document.querySelectorAll('#sessions option').length === 2")
    await tab.js("{ const s = document.getElementById('sessions'); s.selectedIndex = 1; s.onchange(); }")
    await tab.until(f"{LAST}?.innerText.includes('in one')")


async def test_a_rehearsal_is_announced(tmp_path: Path, tab: Browser) -> None:
    """P8: a scripted answer is never mistaken for a model's."""
    async with site(tmp_path) as here:
        here.agents = [type(here.agents[0])("echo", "", "m", True, rehearsal=True)]
        await tab.open(here.url)
        assert await tab.js("document.getElementById('rehearsal').hidden") is True
        await ask(tab, "x")
        await tab.until("!document.getElementById('rehearsal').hidden")


async def test_a_refusal_is_shown_with_its_remedy(here: Site, tab: Browser) -> None:
    """The prompt stays in the box."""
    here.agents = []
    await tab.open(here.url)
    await ask(tab, "keep me")
    await tab.until("!document.getElementById('problem').hidden")
    assert "no agent is served yet" in await tab.js("document.getElementById('problem').innerText")
    assert await tab.js("document.getElementById('input').value") == "keep me"


async def test_the_page_needs_nothing_from_elsewhere(here: Site) -> None:
    """One file, and a policy under which nothing else could run."""
    got = await here.http.get("/")
    assert "sha256-" in got.headers["content-security-policy"]
    assert "unsafe" not in got.headers["content-security-policy"]
    for foreign in ("https://", "//cdn", "innerHTML", "onclick=", "style="):
        assert foreign not in got.text, foreign


async def test_a_waiting_run_is_decided_with_the_keyboard(here: Site, tab: Browser) -> None:
    """What is asked can be read, both answers are buttons, and afterwards they are gone."""
    await tab.open(here.url)
    await tab.press("hello")
    holder = await here.claim()
    await holder.park()
    await tab.until("document.querySelector('.asks legend').textContent === 'May look run?'")
    assert await tab.js("[...document.querySelectorAll('.asks button')].map((b) => b.ariaLabel).join()") == (
        "Approve look,Deny look"
    )
    await tab.until("document.querySelector('.live').textContent.startsWith('waiting for a decision')")
    await picture(tab, "waiting")
    await tab.js("document.querySelector('.asks button').focus()")
    for kind in ("keyDown", "keyUp"):
        await tab.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    await tab.until("!document.querySelector('.asks') && document.body.innerText.includes('Decided: approved.')")
    assert (await here.store.get(holder.key)).state == "queued"
    await here.complete(await here.claim(), "done")
    assert tab.problems == []

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


async def key(tab: Browser, name: str, code: int, **more: str) -> None:
    """Press one key, wherever the focus is."""
    for kind in ("keyDown", "keyUp"):
        await tab.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)


async def enter(tab: Browser) -> None:
    await key(tab, "Enter", 13, text="\r")


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
    await tab.until(f"{LAST}.querySelector('.tool .how').textContent.startsWith('running')")
    await tab.until(f"{LAST}.querySelector('.tool pre').textContent.includes('\"where\": \"sea\"')")
    await tab.until(f"{LAST}.querySelector('.live:not([hidden])')?.textContent.startsWith('running look_up; ')")
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
    assert "answering" in await tab.until(f"!{LIVE}.includes('waiting on') && {LIVE}")
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
    await tab.js("document.querySelector('#queue li button:last-child').click()")
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
    await key(tab, "Escape", 27)  # nobody hears it yet, and it is not forgotten
    await tab.until("document.getElementById('problem').innerText.includes('will be as soon as it is back')")
    await holder.say("meanwhile ")
    await tab.offline(False)
    await tab.until("document.getElementById('offline').hidden")
    await here.obey(holder)
    await tab.until(f"{LAST}.innerText.includes('before meanwhile ') && {LAST}.querySelector('.end.cancelled')")
    # Once the stop is answered, which may be after the end.
    await tab.until("document.getElementById('problem').hidden")


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
    names = "[...document.querySelectorAll('#sessions .name')].map((e) => e.textContent).join('|')"
    await tab.until(f"{names} === 'in two|in one'")  # by what was asked first, not by an id that nobody knows
    await tab.js("document.querySelectorAll('#sessions .pick')[1].click()")
    await tab.until(f"{LAST}?.innerText.includes('in one')")
    assert await tab.js("document.getElementById('title').textContent") == "in one"
    await tab.until("document.querySelector('#sessions [aria-current]').innerText.includes('in one')")
    await tab.js("document.querySelector('#sessions .here .drop').click()")
    await tab.until("document.getElementById('sure').open")
    assert "in one" in await tab.js("document.querySelector('#sure p').textContent")
    await tab.js("document.querySelector('#sure .stop').click()")
    await tab.until(f"{names} === 'in two' && document.querySelector('.empty') && location.hash === ''")


async def test_a_rehearsal_is_announced(tmp_path: Path, tab: Browser) -> None:
    """P8: a scripted answer is never mistaken for a model's."""
    size = {"width": 375, "height": 600, "deviceScaleFactor": 1, "mobile": True}
    await tab.call("Emulation.setDeviceMetricsOverride", **size)
    async with site(tmp_path) as here:
        here.agents = [type(here.agents[0])("echo", "", "m", True, rehearsal=True)]
        await tab.open(here.url)  # before anything was asked: who sees it first is told first
        await tab.until("!document.getElementById('rehearsal').hidden")
        assert await tab.js("document.getElementById('scroll').scrollTop") == 0  # however small the window
        await tab.js("document.querySelector('.tries button').click()")
        assert (await tab.js("document.getElementById('input').value")).startswith("!think")
        here.agents = [type(here.agents[0])("echo", "", "m", True, rehearsal=False)]
        await tab.reload()
        await tab.until("document.querySelector('.empty h2')")
        await tab.until("typeof agents === 'object' && agents.length === 1")
        assert await tab.js("document.getElementById('rehearsal').hidden") is True


async def test_a_refusal_is_shown_with_its_remedy(here: Site, tab: Browser) -> None:
    """The prompt stays in the box."""
    here.agents = []
    await tab.open(here.url)
    await ask(tab, "keep me")
    await tab.until("!document.getElementById('problem').hidden")
    assert "No agent is served yet. See /readyz" in await tab.js("document.getElementById('problem').innerText")
    assert await tab.js("document.getElementById('input').value") == "keep me"


async def test_what_waits_is_edited_and_survives_a_reload(here: Site, tab: Browser) -> None:
    """F24: whole, though lists cut it; what one types is not lost to the page's own refreshing."""
    await tab.open(here.url)
    await tab.js("document.getElementById('busy').value = 'enqueue'; document.getElementById('busy').onchange()")
    await ask(tab, "active")
    holder = await here.claim()
    await tab.until("!document.getElementById('stop').disabled")
    await ask(tab, "long " * 100)
    await tab.until("document.querySelector('#queue li')")
    await tab.reload()
    await tab.until("document.querySelector('#queue li button')")
    assert await tab.js("document.getElementById('busy').value") == "enqueue"
    await tab.js("document.querySelector('#queue li button').click()")
    assert await tab.until("document.querySelector('#queue textarea')?.value") == ("long " * 100).strip()
    await tab.js("document.querySelector('#queue textarea').value = 'short'; refresh()")
    await tab.js("refresh()")
    assert await tab.js("document.activeElement.value") == "short"
    await picture(tab, "edit")
    await enter(tab)
    await tab.until("document.querySelector('#queue li > span')?.textContent === 'short'")
    await here.complete(holder, "")
    assert (await here.claim()).claim.spec.input == "short"
    await tab.until(f"{LAST}.innerText.includes('short')")


async def test_escape_stops_what_is_active_and_nothing_else(here: Site, tab: Browser) -> None:
    """F19 on the page: one key, the same receipt; with nothing active it does nothing."""
    await tab.open(here.url)
    await key(tab, "Escape", 27)
    await ask(tab, "stop me")
    holder = await here.claim()
    await tab.until("!document.getElementById('stop').disabled")
    await key(tab, "Escape", 27)
    await key(tab, "Escape", 27)
    await tab.until(f"{LIVE}.startsWith('stopping')")
    await here.obey(holder)
    await tab.until(f"{LAST}.querySelector('.end.cancelled')")
    await key(tab, "Escape", 27)
    assert await tab.js("document.getElementById('problem').hidden") is True
    await tab.js(f"{LAST}.querySelector('.again').click()")
    assert await tab.js("document.getElementById('input').value") == "stop me"


async def test_after_a_reload_silence_is_as_old_as_it_is(here: Site, tab: Browser) -> None:
    """F82: reading the log again is no progress of the run, and its phase is known at once."""
    await tab.open(here.url)
    await ask(tab, "dive")
    holder = await here.claim()
    await holder.append(build.text(0, "Diving. "), build.tool_called("c1", "dive"))
    await tab.until(f"{LIVE}.startsWith('running dive')")
    await tab.until(f"/last progress [2-9] s ago/.test({LIVE})")
    await tab.reload()
    said = await tab.until(f"{LAST}?.querySelector('.live:not([hidden])')?.textContent")
    assert re.search(r"last progress [2-9] s ago", said), said
    await tab.until(f"{LIVE}.startsWith('running dive')")
    await here.complete(holder, "Diving.")


async def test_a_long_answer_is_whole_and_in_pieces_that_a_browser_can_lay_out(here: Site, tab: Browser) -> None:
    """One block of 20,000 tokens took a tab ten seconds at a time; nothing of the text may be lost for that."""
    await tab.open(here.url)
    await ask(tab, "long")
    holder = await here.claim()
    words = "".join(f"t{n} " for n in range(5000))
    lines = "".join(f"line {n} \U0001f40b\n" for n in range(2000))
    for text in (words, "\U0001f40b" * 7000, lines):
        await holder.append(*(build.text(0, text[at : at + 700]) for at in range(0, len(text), 700)))
    await here.complete(holder, "")
    whole = words + "\U0001f40b" * 7000 + lines
    await tab.until(f"{LAST}.querySelector('.text').textContent.length === {len(whole.encode('utf-16-le')) // 2}")
    assert await tab.js(f"{LAST}.querySelector('.text').textContent") == whole
    sizes = await tab.js(f"[...{LAST}.querySelectorAll('.text > div')].map((e) => e.textContent.length)")
    assert max(sizes) <= 12_001
    await tab.until("document.getElementById('latest').hidden && below() < 2")
    await tab.js("document.getElementById('scroll').scrollTop = 0")
    await tab.until("!document.getElementById('latest').hidden")


async def test_code_is_set_apart_wherever_the_stream_cuts_it(here: Site, tab: Browser) -> None:
    """Between fences, in blocks of its own; the same whether it came in one piece or in any two."""
    await tab.open(here.url)
    shapes = await tab.js(
        """(() => {
          const said = "a ``` b\\n```py\\nx = `1`\\n\\ny <b>\\n```\\nafter ``\\n   ```\\nz";
          const shape = (pieces) => {
            const box = document.createElement("div"), prose = new Prose(box);
            for (const piece of pieces) { prose.add(piece); prose.write(); }
            prose.finish(); prose.write();
            return [...box.children].map((e) => `${e.tagName}:${e.textContent}`).join("|");
          };
          const all = new Set([shape([said]), shape([...said])]);
          for (let n = 1; n < said.length; n += 1) all.add(shape([said.slice(0, n), said.slice(n)]));
          for (const end of ["``", "```", "```py", "x\\n  "]) all.add(shape([...end]) === shape([end]) ? "" : end);
          return [...all].filter((each) => each);
        })()"""
    )
    assert shapes == ["DIV:a ``` b\n|PRE:x = `1`\n\ny <b>\n|DIV:after ``\n|PRE:z"]


async def test_what_belongs_to_another_run_or_was_here_before_is_dropped(here: Site, tab: Browser) -> None:
    """F25: each event names its run and its place in it."""
    await tab.open(here.url)
    await ask(tab, "mine")
    holder = await here.claim()
    await holder.say("one ")
    await tab.until(f"{LAST}.innerText.includes('one ')")
    view = "[...views.values()].pop()"
    await tab.js(
        f"{view}.take({{ type: 'text.delta', run: 'r_other', seq: {view}.seq + 1, part: 0, text: 'foreign' }})"
    )
    await tab.js(f"{view}.take({{ type: 'text.delta', run: {view}.run, seq: {view}.seq, part: 0, text: 'twice' }})")
    gap = f"{{ type: 'text.delta', run: {view}.run, seq: {view}.seq + 2, part: 0, text: 'gap' }}"
    assert await tab.js(f"(() => {{ try {{ {view}.take({gap}); }} catch (e) {{ return e.message; }} }})()")
    await holder.say("two")
    await here.complete(holder, "")
    await tab.until(f"{LAST}.querySelector('.text').textContent === 'one two'")


async def test_a_prompt_that_got_no_answer_is_sent_again_without_a_second_run(here: Site, tab: Browser) -> None:
    """The answer was lost, the run was not: pressing Send again finds it."""
    await tab.open(here.url)
    await tab.js(
        "{ const real = fetch; let cut = false; window.fetch = async (path, how) => {"
        " const got = await real(path, how);"
        " if (how?.method === 'POST' && !cut) { cut = true; throw new TypeError('cut'); }"
        " return got; } }"
    )
    await ask(tab, "once")
    await tab.until("document.getElementById('problem').innerText.includes('your prompt is still in the box')")
    assert await tab.js("document.getElementById('input').value") == "once"
    await enter(tab)
    holder = await here.claim()
    await tab.until(f"{LAST}?.innerText.includes('once')")
    assert len((await here.http.get("/api/runs")).json()["runs"]) == 1
    await here.complete(holder, "")


async def test_a_server_out_of_reach_is_said_when_nothing_runs_too(here: Site, tab: Browser) -> None:
    """An old page that looks alive is a lie; and nothing need be pressed when the server is back."""
    await tab.open(here.url)
    await tab.offline(True)
    await tab.js("glance()")
    await tab.until("document.getElementById('offline').innerText.includes('cannot be reached')")
    await tab.offline(False)
    await tab.until("document.getElementById('offline').hidden")


async def test_a_failure_says_its_cause_and_its_remedy(here: Site, tab: Browser) -> None:
    """Who reads it knows what to do next."""
    await tab.open(here.url)
    await ask(tab, "fail")
    holder = await here.claim()
    error = {
        "code": "model_connect",
        "message": "no answer",
        "cause": "refused",
        "retryable": True,
        "remedy": "start it",
    }
    drafts = [(EventType.RUN_FAILED, {"reason": "model_error", "error": error})]
    await here.end(holder, drafts, State.FAILED, Reason.MODEL_ERROR, error=error)
    words = "Failed (model_error): no answer. Cause: refused. Start it."
    await tab.until(f"{LAST}.querySelector('.end.failed')?.textContent === {words!r}")


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
    await holder.append(build.tool_called("c1", "look"))
    await holder.park()
    await tab.until("document.querySelector('.asks legend').textContent === 'May look run?'")
    how = "document.querySelector('.tool .how').textContent"
    assert await tab.js(how) == "needs a decision"  # it was called, and does not run
    assert await tab.js("[...document.querySelectorAll('.asks button')].map((b) => b.ariaLabel).join()") == (
        "Approve look,Deny look"
    )
    await tab.until("document.querySelector('.live').textContent.startsWith('waiting for a decision')")
    await picture(tab, "waiting")
    await tab.js("document.querySelector('.asks button').focus()")
    await enter(tab)
    await tab.until("!document.querySelector('.asks') && document.body.innerText.includes('Decided: approved.')")
    assert (await here.store.get(holder.key)).state == "queued"
    assert await tab.js(how) == "approved"
    await here.complete(await here.claim(), "done")
    assert tab.problems == []


async def test_what_somebody_else_decided_is_no_longer_asked(here: Site, tab: Browser) -> None:
    """Two people look at one run: the second is asked about what is open, and the run goes on with both answers."""
    await tab.open(here.url)
    await tab.press("hello")
    holder = await here.claim()
    await holder.append(build.tool_called("c1", "look"), build.tool_called("c2", "dive"))
    requests = [{"call": call, "name": name, "kind": "approval"} for call, name in (("c1", "look"), ("c2", "dive"))]
    asked = holder.encode((EventType.RUN_WAITING, {"requests": requests}))
    await here.store.park(holder.key, holder.fence, holder.head, asked, b"parked", build.HOUR_MS)
    labels = "[...document.querySelectorAll('.asks button')].map((b) => b.ariaLabel).join()"
    await tab.until(f"{labels} === 'Approve look,Deny look,Approve dive,Deny dive'")
    body = {"decisions": [{"call": "c1", "approve": False}]}
    decided = await here.http.post(f"/api/runs/{holder.key.run}/decisions", json=body)
    assert (decided.status_code, decided.json()["waits_for"]) == (202, ["c2"])
    await tab.until(f"{labels} === 'Approve dive,Deny dive'")
    await tab.js("document.querySelector('.asks button').click()")
    await tab.until("document.body.innerText.includes('Decided: 1 approved, 1 denied.')")
    claim = await here.claim()
    assert [each["approve"] for each in claim.claim.decisions] == [False, True]
    await here.complete(claim, "done")
    assert tab.problems == []

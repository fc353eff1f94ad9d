"""What somebody new does with `holdfast demo` and a browser: the whole of it, nothing replaced."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.live import Server
from tests.gateway.browser import Browser, browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
LAST = "document.querySelector('article:last-of-type')"
LIMIT_S = 20.0


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, "demo", "--port", "0")
    yield server
    server.kill()


async def test_stop_reload_and_a_killed_worker_are_seen_on_the_page(demo: Server) -> None:
    """Stop while a tool sleeps and its receipt; a reload in mid-stream; kill -9 of the worker, and the run goes on."""
    async with browser() as tab:
        await tab.open(demo.url)
        await tab.until("document.querySelectorAll('.tries button').length > 2 && agents.length === 1")
        await _try(tab, "sleeps")
        await tab.until(f"{LAST}?.querySelector('.live').textContent.startsWith('running sleep; ')", LIMIT_S)
        await tab.js("document.getElementById('stop').click()")
        words = await tab.until(f"{LAST}.querySelector('.end.cancelled')?.textContent", LIMIT_S)
        assert words.startswith("Stopped in ")
        assert words.endswith("tool sleep: cancelled.")

        # The model falls silent behind its tokens, once: the run is there to be killed however slow the machine is.
        await tab.press("!tokens n=80 rate=25\n!stall after=0 for=60 times=1\n!say the end")
        await tab.until(f"{LAST}.textContent.includes('t20 ')", LIMIT_S)
        await tab.reload()
        await tab.until(f"{LAST}?.textContent.includes('t30 ')", LIMIT_S)
        os.kill(_worker(demo), signal.SIGKILL)
        await tab.until(f"{LAST}.textContent.includes('Attempt 2')", LIMIT_S)
        await tab.until(f"{LAST}.querySelector('.spent')", LIMIT_S)
        text = await tab.js(f"{LAST}.querySelector('.text').textContent")
        assert text == "".join(f"t{n} " for n in range(1, 81)) + "the end"  # once, whole, whatever was shown before
        assert tab.problems == []


async def _try(tab: Browser, words: str) -> None:
    """Take one of the scripts that the page offers, and send it."""
    await tab.js(
        f"[...document.querySelectorAll('.tries button')].find((b) => b.innerText.includes({words!r})).click()"
    )
    await tab.js("document.getElementById('ask').requestSubmit()")


def _worker(demo: Server) -> int:
    """The process that has the newest run, as its record names it: what workers report of themselves is a beat old."""
    run: dict[str, Any] = httpx2.get(f"{demo.url}/api/runs?limit=1").json()["runs"][0]
    assert run["state"] == "running"
    return int(run["worker"].removeprefix("w").split("-")[0])

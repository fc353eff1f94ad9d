"""A headless Chromium, driven over its debugging pipe: no driver, no library, no port."""

import asyncio
import base64
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--window-size=900,1000",
)
# Chromium reads commands on descriptor 3 and answers on 4.
_START = 'exec "$@" 3<&"$READ" 4>&"$WRITE"'
ANSWER_S = 20.0


class Browser:
    """One tab."""

    def __init__(self, send: asyncio.WriteTransport, answers: asyncio.StreamReader) -> None:
        self._send = send
        self._answers = answers
        self._number = 0
        self._tab: str | None = None
        self.problems: list[str] = []  # what the page's console and its security policy complained of

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what the page reports in between is noted."""
        self._number += 1
        command: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._tab:
            command["sessionId"] = self._tab
        self._send.write(msgspec.json.encode(command) + b"\0")
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = msgspec.json.decode((await self._answers.readuntil(b"\0"))[:-1])
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    return message["result"]
                self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(parameters["exceptionDetails"].get("exception", parameters)))
            case "Log.entryAdded" if parameters["entry"]["source"] in ("security", "javascript"):
                self.problems.append(parameters["entry"]["text"])

    async def attach(self) -> None:
        tab = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._tab = (await self.call("Target.attachToTarget", targetId=tab, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        await self.js("window.old = true")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && !window.old")

    async def reload(self) -> None:
        await self.js("window.old = true")
        await self.call("Page.reload")
        await self.until("document.readyState === 'complete' && !window.old")

    async def js(self, expression: str) -> Any:
        """The value of an expression; a promise is awaited."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, limit_s: float = 8.0) -> Any:
        """Wait until an expression is true."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        seen = f"const v = {expression}; return v instanceof Node ? true : v;"
        while loop.time() < end:
            value = await self.js(f"(() => {{ try {{ {seen} }} catch {{ return false; }} }})()")  # null: not there yet
            if value:
                return value
            await asyncio.sleep(0.02)
        text = await self.js("document.body.innerText")
        raise AssertionError(f"never: {expression}\n--- the page says:\n{text}\n--- problems: {self.problems}")

    async def press(self, text: str) -> None:
        """Type a prompt and press Enter, with real key events."""
        await self.js("document.getElementById('input').focus()")
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    async def offline(self, off: bool) -> None:
        await self.call(
            "Network.emulateNetworkConditions", offline=off, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )

    async def picture(self, path: Path) -> None:
        data = (await self.call("Page.captureScreenshot", format="png"))["data"]
        await asyncio.get_running_loop().run_in_executor(None, path.write_bytes, base64.b64decode(data))


def chromium() -> str:
    """Where it is; a test that needs it says so where it is not."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        why = "no chromium: the page is NOT tested; scripts/system-packages chromium installs it"
        if os.geteuid() == 0:
            pytest.fail(why)
        pytest.skip(why)
    return found


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Chromium with an empty profile, killed at the end with all that it started."""
    program = chromium()
    loop = asyncio.get_running_loop()
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    profile = tempfile.mkdtemp(prefix="hf-chromium-")
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", _START, "bash", program, *FLAGS, f"--user-data-dir={profile}",
        env={**os.environ, "READ": str(theirs_in), "WRITE": str(theirs_out), "HOME": profile},
        pass_fds=(theirs_in, theirs_out), start_new_session=True,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    answers = asyncio.StreamReader(limit=64 * 1024 * 1024)
    sender, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(ours_out, "wb", buffering=0))
    reader, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(ours_in, "rb", buffering=0)
    )
    made = Browser(sender, answers)
    try:
        await made.attach()
        yield made
    finally:
        sender.close()
        reader.close()
        os.killpg(process.pid, 9)
        await process.wait()
        shutil.rmtree(profile, ignore_errors=True)

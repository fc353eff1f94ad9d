"""An agent whose tools do to their process what no server can forbid; copied beside the database, imported there only.

Each tool writes what happens to it into `journal.jsonl` before it does it.
"""

import asyncio
import contextlib
import ctypes
import json
import multiprocessing
import os
import re
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

from pydantic_ai import Agent

JOURNAL = Path(__file__).with_name("journal.jsonl")
BROKEN = Path(__file__).with_name("broken")  # while it is there, this module cannot be imported

if BROKEN.exists():
    os._exit(9)

crew = Agent(name="crew", instructions="Answer in one sentence.")


def note(tool: str, what: str) -> None:
    """One line, in one write, so that a kill leaves it whole or out."""
    line = json.dumps({"tool": tool, "what": what, "at": time.monotonic(), "pid": os.getpid()}) + "\n"
    fd = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def catastrophe() -> None:
    """Minutes inside one C call that keeps the interpreter's lock."""
    re.match(r"(a+)+$", "a" * 40 + "b")


@crew.tool_plain
async def hog(seconds: float) -> str:
    """Block the loop; other threads run."""
    note("hog", "began")
    time.sleep(seconds)
    note("hog", "returned")
    return "slept"


@crew.tool_plain
async def regex() -> str:
    """Block the loop and every other thread."""
    note("regex", "began")
    catastrophe()
    return "matched"


@crew.tool_plain
async def nap_in_c(seconds: int) -> str:
    """Block the loop and every other thread, and use no processor."""
    note("nap_in_c", "began")
    ctypes.PyDLL(None).sleep(seconds)  # unlike CDLL, it keeps the interpreter's lock
    return "slept"


@crew.tool_plain
async def hold(seconds: int) -> str:
    """Block everything inside a transaction on the server's own database, as its writer does when it is caught so."""
    with sqlite3.connect(Path(__file__).with_name("holdfast.db"), isolation_level=None) as database:
        database.execute("BEGIN IMMEDIATE")
        note("hold", "began")
        ctypes.PyDLL(None).sleep(seconds)
    return "held"


@crew.tool_plain
def regex_in_thread() -> str:
    """Block every thread, the loop's too, from a thread of the pool."""
    note("regex_in_thread", "began")
    catastrophe()
    return "matched"


@crew.tool_plain
async def child_hog(seconds: float) -> str:
    """Block the loop in a task that the agent started itself."""

    async def work() -> None:
        await asyncio.sleep(0.01)
        note("child_hog", "began")
        time.sleep(seconds)

    await asyncio.create_task(work())
    return "slept"


@crew.tool_plain
async def late_hog(seconds: float) -> str:
    """Be cancelled, and only then block the loop."""
    note("late_hog", "began")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(1.4)
        note("late_hog", "blocks")
        time.sleep(seconds)
        raise
    return "slept"


@crew.tool_plain
async def leave(code: int) -> str:
    """End the process without a word."""
    note("leave", "began")
    os._exit(code)


@crew.tool_plain
async def crash() -> str:
    """Read from address 0."""
    note("crash", "began")
    return str(ctypes.string_at(0))


@crew.tool_plain
def crash_in_thread() -> str:
    """Read from address 0, in a thread of the pool."""
    note("crash_in_thread", "began")
    return str(ctypes.string_at(0))


@crew.tool_plain
def litter() -> str:
    """Leave a process behind that has every descriptor it can get."""
    note("litter", "began")
    os.system("sleep 20 >/dev/null 2>&1 & echo $! >> litter.pids")  # noqa: S605
    return "left"


async def scatter(ctx):
    """Start a task in a way that does not pass a cancellation on; `forget` leaves it, `deaf` cancels it in vain."""

    async def tick() -> None:
        while True:
            note("scatter", "tick")
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                if ctx.input != "deaf":
                    raise

    task = asyncio.create_task(tick())
    yield "started"
    if ctx.input == "forget":
        await asyncio.sleep(60)
    await (asyncio.shield(task) if ctx.input == "shield" else asyncio.wait([task]))


@crew.tool_plain
def linger() -> str:
    """Start a thread that the interpreter waits for before it ends."""
    threading.Thread(target=time.sleep, args=(60,)).start()
    return "started"


@crew.tool_plain
def leak() -> str:
    """Open files and forget them, until there are no more to be had."""
    note("leak", "began")
    opened = 0
    with contextlib.suppress(OSError):
        while True:
            os.open("/dev/null", os.O_RDONLY)
            opened += 1
    return f"leaked {opened > 0}"


@crew.tool_plain
def fork() -> str:
    """Leave a process behind that is a copy of this one, as multiprocessing starts them on Linux."""
    note("fork", "began")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
    child.start()
    Path("litter.pids").write_text(f"{child.pid}\n")
    return "left"


@crew.tool_plain
def terminate() -> str:
    """Start a process and end it in the polite way."""
    process = subprocess.Popen(["sleep", "30"])
    process.terminate()
    try:
        return f"ended by {-process.wait(3)}"
    except subprocess.TimeoutExpired:
        process.kill()
        return "it did not listen"


@crew.tool_plain
async def nap(seconds: float) -> str:
    """Sleep, and be woken by a cancellation."""
    note("nap", "began")
    await asyncio.sleep(seconds)
    note("nap", "returned")
    return "rested"


@crew.tool_plain
def block(seconds: float) -> str:
    """Block a thread, where no cancellation arrives."""
    note("block", "began")
    time.sleep(seconds)
    note("block", "returned")
    return "unblocked"


@crew.tool_plain
async def deaf(seconds: float) -> str:
    """Sleep, and swallow every cancellation."""
    note("deaf", "began")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            note("deaf", "swallowed")
    return "heard nothing"


@crew.tool_plain
async def once(mark: str, seconds: float = 0.05) -> str:
    """What must not happen twice."""
    note("once", mark)
    await asyncio.sleep(seconds)
    return mark


@crew.tool_plain
def once_in_thread(mark: str, seconds: float = 0.05) -> str:
    """What must not happen twice, in a thread."""
    note("once", mark)
    time.sleep(seconds)
    return mark

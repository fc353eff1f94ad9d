"""What a run does at this moment, for `inspect`: where its tasks wait, where its threads are, which timers run.

File, line and function of each frame, nothing else: no locals, no values, no secrets. Bounded in number and in size,
and made of what can be had without waiting.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Final

from holdfast.engine.blame import works_for
from holdfast.engine.stalls import Waiting
from holdfast.ports.probe import Probe

FRAMES_MAX: Final = 20
_LOGGED_FRAMES: Final = 16
_TASKS_MAX: Final = 8
_THREADS_MAX: Final = 4
_DEPTH_MAX: Final = 200
_NAME_CHARACTERS: Final = 120
_PATH_PARTS: Final = 3


def timers_of(wait: Waiting, probe: Probe) -> list[dict[str, Any]]:
    """The timers of the worker, by name and time left; the store has its own."""
    timers = {wait.fires: wait.fires_in_ms}
    _, fires, at = probe.waiting()
    if fires and at is not None:
        timers.setdefault(fires, max(0, round((at - time.monotonic()) * 1000)))
    return [{"name": name, "left_ms": left} for name, left in timers.items() if name != "run_deadline"]


def threads_of(probe: Probe) -> list[dict[str, Any]]:
    """The threads that work for the run, with their stacks; abandoned ones are those that nobody waits for."""
    frames = sys._current_frames()
    now = time.monotonic()
    return [
        {
            "call": each.call,
            "since_ms": round((now - each.since) * 1000),
            "quarantined": each.abandoned,
            "stack": thread_stack(frames.get(each.ident)),
        }
        for each in probe.threads_at_work()[:_THREADS_MAX]
    ]


def stacks_of(work: asyncio.Task[Any] | None, slot: int | None) -> list[dict[str, Any]]:
    """The await stack of every task that works for the run: the agent's first, then its tools' and others'."""
    if work is None:
        return []
    others: list[asyncio.Task[Any]] = []
    if slot:
        others = [task for task in asyncio.all_tasks() if task is not work and works_for(task) == slot]
    tasks = [work, *sorted(others, key=lambda task: task.get_name())]
    return [{"task": task.get_name()[:_NAME_CHARACTERS], "stack": await_stack(task)} for task in tasks[:_TASKS_MAX]]


def await_stack(task: asyncio.Task[Any]) -> list[str]:
    """Where a task waits, outermost first: `file:line function`."""
    lines = [_line(frame) for frame in _frames(task.get_coro())]
    if len(lines) > FRAMES_MAX:
        left_out = len(lines) - FRAMES_MAX
        lines = [*lines[: FRAMES_MAX // 2], f"({left_out} more)", *lines[-FRAMES_MAX // 2 :]]
    return lines


def thread_stack(frame: types.FrameType | None) -> list[str]:
    """Where a thread is, outermost first; the innermost frames where there are many."""
    lines: list[str] = []
    while frame is not None and len(lines) < FRAMES_MAX:
        lines.append(_line(frame))
        frame = frame.f_back
    return lines[::-1]


def stack_text(thread: int) -> str:
    """The stack of a thread in one line, for a log."""
    return " > ".join(thread_stack(sys._current_frames().get(thread))[-_LOGGED_FRAMES:]) or "unknown"


def _frames(awaited: Any) -> Iterator[types.FrameType]:
    """Follow what each coroutine waits on, through generators, tasks and the wrappers in between."""
    for _ in range(_DEPTH_MAX):
        awaited = getattr(awaited, "work", awaited)  # a marked coroutine
        if isinstance(awaited, types.CoroutineType):
            frame, following = awaited.cr_frame, awaited.cr_await
        elif isinstance(awaited, types.GeneratorType):
            frame, following = awaited.gi_frame, awaited.gi_yieldfrom
        elif isinstance(awaited, types.AsyncGeneratorType):
            frame, following = awaited.ag_frame, awaited.ag_await
        elif isinstance(awaited, asyncio.Task):
            frame, following = None, awaited.get_coro()
        else:
            frame, following = None, _behind(awaited)
        if frame is not None:
            yield frame
        if following is None:
            return
        awaited = following


def _behind(awaited: Any) -> Any:
    """What an object of the interpreter's stands for, such as one step of an async generator; it does not say so."""
    if awaited is None or isinstance(awaited, asyncio.Future):
        return None
    kinds = (types.CoroutineType, types.GeneratorType, types.AsyncGeneratorType, asyncio.Task)
    return next((each for each in gc.get_referents(awaited) if isinstance(each, kinds)), None)


def _line(frame: types.FrameType) -> str:
    code = frame.f_code
    path = "/".join(PurePath(code.co_filename).parts[-_PATH_PARTS:])
    return f"{path}:{frame.f_lineno} {getattr(code, 'co_qualname', code.co_name)}"[:_NAME_CHARACTERS]

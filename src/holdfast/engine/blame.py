"""Who is in user code: a mark in shared memory, so that a supervisor knows whom to blame for a blocked loop.

Every step of a task that works for a run is wrapped: before the step the run's slot number is written into the mark,
after it the mark is cleared. A loop that does not beat is inside the step that the mark names. A step costs two
writes of eight bytes. What leaves a step as SystemExit or KeyboardInterrupt would end the loop that all runs share; it
leaves as an `AgentExit` instead, whatever task of the run's it was.

A sync tool in a thread can block the loop, too: a long call into C that keeps the interpreter's lock. So tool threads
are on the board as well, and `culprit` looks which of them works while the loop's thread only asks for the lock.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from holdfast.domain.errors import AgentExit
from holdfast.domain.ids import RunKey

SLOTS: Final = 4096
_NAME_BYTES: Final = 272  # tenant, a line feed, run: two ids of at most 128
_THREADS: Final = 512  # two numbers for each: the kernel's id of the thread, and the slot it works for
_THREADS_AT: Final = 1
_NAMES_AT: Final = 8 * (_THREADS_AT + 2 * _THREADS)
SIZE: Final = _NAMES_AT + SLOTS * _NAME_BYTES
_WORKS: Final = 0.3  # of a processor, in a thread that holds the lock
_ASKS: Final = 20  # times a second, at least, for the lock; CPython asks 200 times

_slot: ContextVar[int | None] = ContextVar("holdfast_blame_slot", default=None)  # 0: a run that has no slot


class BlameBoard:
    """The shared memory: one mark, and the names of the slots."""

    def __init__(self, fd: int) -> None:
        """Map the file `fd`, of at least `SIZE` bytes."""
        self._map = mmap.mmap(fd, SIZE)
        self._mark = memoryview(self._map)[:_NAMES_AT].cast("q")
        self._free = deque(range(1, SLOTS))  # the longest unused first: a tool's thread may outlive its run
        self._free_threads = list(range(_THREADS_AT, _THREADS_AT + 2 * _THREADS, 2))
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let the memory go."""
        self._mark.release()
        self._map.close()

    @staticmethod
    def create() -> int:
        """A file in memory, as a descriptor that children may inherit."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("holdfast-blame")
        else:
            import tempfile

            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.ftruncate(fd, SIZE)
        return fd

    @classmethod
    def alone(cls) -> BlameBoard:
        """A board that no other process looks at: for a worker on a thread."""
        fd = cls.create()
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def take(self, key: RunKey) -> int:
        """A slot for a run; 0, which blames nobody, where all are taken."""
        if not self._free:
            return 0
        slot = self._free.popleft()
        name = f"{key.tenant}\n{key.run}".encode()[:_NAME_BYTES]
        at = _NAMES_AT + slot * _NAME_BYTES
        self._map[at : at + _NAME_BYTES] = name.ljust(_NAME_BYTES, b"\0")
        return slot

    def give_back(self, slot: int) -> None:
        """The run has ended."""
        if slot:
            self._free.append(slot)

    def blamed(self) -> RunKey | None:
        """The run in whose step the loop is now; for the supervisor, whose worker does not beat."""
        return self._run_of(self._mark[0])

    def threads(self) -> dict[int, RunKey]:
        """The threads that are in a sync tool, by the kernel's ids."""
        found: dict[int, RunKey] = {}
        for at in range(_THREADS_AT, _THREADS_AT + 2 * _THREADS, 2):
            thread, run = self._mark[at], self._run_of(self._mark[at + 1])
            if thread and run is not None:
                found[thread] = run
        return found

    def enter_thread(self, context: Context) -> Callable[[], None]:
        """This thread begins to work in `context`; what to call when it has ended."""
        slot = context.get(_slot)
        with self._lock:
            if not slot or not self._free_threads:
                return _nothing
            at = self._free_threads.pop()
        self._mark[at + 1] = slot
        self._mark[at] = threading.get_native_id()

        def leave() -> None:
            self._mark[at] = 0
            with self._lock:
                self._free_threads.append(at)

        return leave

    def _run_of(self, slot: int) -> RunKey | None:
        if not 0 < slot < SLOTS:
            return None
        at = _NAMES_AT + slot * _NAME_BYTES
        tenant, _, run = self._map[at : at + _NAME_BYTES].rstrip(b"\0").decode(errors="replace").partition("\n")
        return RunKey(tenant, run) if run else None

    def clear(self) -> None:
        """Blame nobody."""
        self._mark[0] = 0

    def factory(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Any,
        context: Context | None = None,
        name: str | None = None,
        eager_start: bool | None = None,
    ) -> asyncio.Task[Any]:
        """A task factory that wraps what works for a run: the run's own task and every task it starts.

        `eager_start`, which later Pythons pass, is not followed: a task's first step is marked like the others.
        """
        del eager_start
        slot = _slot.get() if context is None else context.get(_slot)
        marked = work if slot is None else _Marked(work, slot, self._mark)
        return asyncio.Task(marked, loop=loop, context=context, name=name)


class Activity:
    """What the loop's thread and the tool threads of a process did since this was made; Linux only."""

    def __init__(self, pid: int, board: BlameBoard) -> None:
        """Take the first look."""
        self._pid = pid
        self._board = board
        self._before = {thread: _seen(pid, thread) for thread in [pid, *board.threads()]}

    @property
    def in_threads(self) -> bool:
        """Whether any tool thread is there to be looked at."""
        return len(self._before) > 1

    def culprit(self, seconds: float) -> RunKey | None:
        """Take the second look, `seconds` after the first: the run that blocks the loop; nobody, if it was stopped."""
        if _stopped(self._pid):
            return None  # by SIGSTOP or a debugger, in whosever step it was: no run did that
        marked = self._board.blamed()
        if not self.in_threads:
            return marked
        worked: dict[int, float] = {}
        asked = 0.0
        for thread, before in self._before.items():
            now = _seen(self._pid, thread)
            if now is not None and before is not None:
                worked[thread] = (now[0] - before[0]) / seconds
                asked = (now[1] - before[1]) / seconds if thread == self._pid else asked
        waits_for_lock = asked >= _ASKS and worked.pop(self._pid, 1.0) < _WORKS
        busiest = max(worked, key=worked.__getitem__, default=0)
        if waits_for_lock and busiest and worked[busiest] >= _WORKS:
            return self._board.threads().get(busiest, marked)
        return marked


def _seen(pid: int, thread: int) -> tuple[float, int] | None:
    """Processor seconds of a thread, and how often it has waited."""
    try:
        task = Path(f"/proc/{pid}/task/{thread}")
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        status = (task / "status").read_text()
        ticks = int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK"), int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _stopped(pid: int) -> bool:
    """Whether a signal or a tracer keeps the process from running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _nothing() -> None:
    """Nobody is told."""


def work_for(slot: int) -> None:
    """From here on this context, and every task that it starts, works for the run of `slot`."""
    _slot.set(slot)


def works_for(task: asyncio.Task[Any]) -> int | None:
    """The slot of the run that a task works for; None for the engine's own."""
    coroutine = task.get_coro()
    return coroutine.slot if isinstance(coroutine, _Marked) else None


class _Marked(Coroutine[Any, Any, Any]):
    """A coroutine whose every step is marked."""

    __slots__ = ("_mark", "cr_await", "cr_code", "cr_frame", "cr_running", "slot", "work")

    def __init__(self, work: Any, slot: int, mark: memoryview) -> None:
        self.work = work
        self.slot = slot
        self._mark = mark
        self.cr_code = getattr(work, "cr_code", None)
        self.cr_frame = getattr(work, "cr_frame", None)
        self.cr_running = False
        self.cr_await = None

    def send(self, value: Any) -> Any:
        mark = self._mark
        before = mark[0]
        mark[0] = self.slot
        try:
            return self.work.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise AgentExit(error) from error
        finally:
            mark[0] = before

    def throw(self, kind: Any, value: BaseException | object = None, trace: TracebackType | None = None) -> Any:
        mark = self._mark
        before = mark[0]
        mark[0] = self.slot
        try:
            return self.work.throw(kind if value is None else value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise AgentExit(error) from error
        finally:
            mark[0] = before

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self.work.__await__())

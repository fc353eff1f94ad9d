"""Who is in user code: a mark in shared memory, so that a supervisor knows whom to blame for a blocked loop.

Every step of a task that works for a run is wrapped: before the step the run's slot number is written into the mark,
after it the mark is cleared. A loop that does not beat is inside the step that the mark names. A step costs two
writes of eight bytes.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar
from types import TracebackType
from typing import Any, Final

from holdfast.domain.ids import RunKey

SLOTS: Final = 4096
_NAME_BYTES: Final = 272  # tenant, a line feed, run: two ids of at most 128
SIZE: Final = 8 + SLOTS * _NAME_BYTES

_slot: ContextVar[int] = ContextVar("holdfast_blame_slot", default=0)


class BlameBoard:
    """The shared memory: one mark, and the names of the slots."""

    def __init__(self, fd: int) -> None:
        """Map the file `fd`, of at least `SIZE` bytes."""
        self._map = mmap.mmap(fd, SIZE)
        self._mark = memoryview(self._map)[:8].cast("q")
        self._free = list(range(SLOTS - 1, 0, -1))

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

    def take(self, key: RunKey) -> int:
        """A slot for a run; 0, which blames nobody, where all are taken."""
        if not self._free:
            return 0
        slot = self._free.pop()
        name = f"{key.tenant}\n{key.run}".encode()[:_NAME_BYTES]
        at = 8 + slot * _NAME_BYTES
        self._map[at : at + _NAME_BYTES] = name.ljust(_NAME_BYTES, b"\0")
        return slot

    def give_back(self, slot: int) -> None:
        """The run has ended."""
        if slot:
            self._free.append(slot)

    def blamed(self) -> RunKey | None:
        """The run in whose step the loop is now; for the supervisor, whose worker does not beat."""
        slot = self._mark[0]
        if not 0 < slot < SLOTS:
            return None
        at = 8 + slot * _NAME_BYTES
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
        slot = _slot.get() if context is None else context.get(_slot, 0)
        marked = _Marked(work, slot, self._mark) if slot else work
        return asyncio.Task(marked, loop=loop, context=context, name=name)


def work_for(slot: int) -> None:
    """From here on this context, and every task that it starts, works for the run of `slot`."""
    _slot.set(slot)


class _Marked(Coroutine[Any, Any, Any]):
    """A coroutine whose every step is marked."""

    __slots__ = ("_mark", "_slot", "_work", "cr_await", "cr_code", "cr_frame", "cr_running")

    def __init__(self, work: Any, slot: int, mark: memoryview) -> None:
        self._work = work
        self._slot = slot
        self._mark = mark
        self.cr_code = getattr(work, "cr_code", None)
        self.cr_frame = getattr(work, "cr_frame", None)
        self.cr_running = False
        self.cr_await = None

    def send(self, value: Any) -> Any:
        mark = self._mark
        before = mark[0]
        mark[0] = self._slot
        try:
            return self._work.send(value)
        finally:
            mark[0] = before

    def throw(self, kind: Any, value: BaseException | object = None, trace: TracebackType | None = None) -> Any:
        mark = self._mark
        before = mark[0]
        mark[0] = self._slot
        try:
            return self._work.throw(kind if value is None else value)
        finally:
            mark[0] = before

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return (yield from self._work.__await__())

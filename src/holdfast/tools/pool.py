"""Runs sync tools in a bounded number of threads, and lets no tool wait for ever to get one.

A thread cannot be cancelled. When a run ends while its tool still blocks in a thread, the thread is quarantined:
it goes on, counted, and a new thread may start in its place, so that other runs' tools still start. Past
`quarantine` such threads the pool is `exhausted`: no more are added, and whoever watches replaces the process.
So there are never more than `threads + quarantine` threads, whatever the tools do.

Why not `concurrent.futures.ThreadPoolExecutor`: a zombie keeps its slot there and new work waits for ever, and
the interpreter waits for its threads at exit. Ours are daemons. It is an `Executor` all the same, because that is
what pydantic-ai takes (`UseThreadExecutor`).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final, TypeVar

from holdfast.ports.probe import Probe, current_probe
from holdfast.tools.calls import current_call

T = TypeVar("T")

IDLE_S: Final = 10.0  # a thread without work for so long ends
QUEUE_MAX: Final = 1000  # jobs that wait for a thread


class ToolQueueTimeout(TimeoutError):
    """A sync tool got no thread in time, so it was never started."""


class ToolQuit(RuntimeError):
    """A sync tool raised what is no Exception, such as SystemExit."""


class _Job(Future[Any]):
    """One call of one function: a future that notices when its caller gives up on it while it runs."""

    def __init__(
        self, pool: ToolPool, work: Callable[[], Any], call: str, probe: Probe, context: contextvars.Context
    ) -> None:
        super().__init__()
        self.pool = pool
        self.context = context
        self.work: Callable[[], Any] | None = work
        self.call = call
        self.probe = probe
        self.quarantined = False
        self.returned = False

    def cancel(self) -> bool:
        """Withdraw a job that waits; one that runs is quarantined."""
        cancelled = super().cancel()
        self.pool._gave_up(self)
        return cancelled

    def perform(self) -> None:
        """Run the function and keep its outcome, in the worker's thread."""
        work, self.work = self.work, None
        self.probe.thread_started(self.call)
        leave = self.pool.watch(self.context)
        error: BaseException | None = ToolQuit("the tool ended its thread")
        outcome: Any = None
        try:
            outcome = work() if work is not None else None
            error = None
        except SystemExit as leaving:  # as an exception of the waiter's loop it would end that loop
            error = ToolQuit(f"the tool called exit({leaving.code})")
        except Exception as failure:  # noqa: BLE001 - the thread's outer edge: whatever it is, the waiter gets it
            error = failure
        finally:
            # Even for what is no Exception and ends this thread: the waiter hears of it.
            leave()
            self.probe.thread_ended(self.call)
            self.pool._returned(self)
            if error is not None:
                self.set_exception(error)
            else:
                self.set_result(outcome)


def _unwatched(_: contextvars.Context) -> Callable[[], None]:
    """Nobody wants to know which thread works for whom."""
    return _nothing


def _nothing() -> None:
    pass


class ToolPool(Executor):
    """A bounded pool of daemon threads with a queue deadline; see the module."""

    def __init__(self, threads: int, queue_s: float, quarantine: int = 4) -> None:
        """Start no thread yet.

        Args:
            threads: How many tools may run at once.
            queue_s: How long a tool may wait for a thread.
            quarantine: How many abandoned threads are replaced before the pool is exhausted.
        """
        self._threads_max = threads
        self._queue_s = queue_s
        self._quarantine_max = quarantine
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._waiting: deque[_Job] = deque()
        self._alive: set[threading.Thread] = set()
        self._idle = 0
        self._quarantined = 0
        self._started = 0
        self._closed = False
        # Called in a tool's thread with the call's context; what it returns is called after the tool.
        self.watch: Callable[[contextvars.Context], Callable[[], None]] = _unwatched

    @property
    def threads(self) -> int:
        """How many threads are alive."""
        with self._lock:
            return len(self._alive)

    @property
    def queued(self) -> int:
        """How many jobs wait for a thread."""
        with self._lock:
            return len(self._waiting)

    @property
    def quarantined(self) -> int:
        """How many threads still work for a call that was given up on."""
        return self._quarantined

    @property
    def exhausted(self) -> bool:
        """Whether abandoned threads now take the place of useful ones: take no new runs, and be replaced."""
        return self._quarantined >= self._quarantine_max

    @property
    def quarantine(self) -> int:
        """How many abandoned threads are replaced."""
        return self._quarantine_max

    def tired(self) -> str:
        """Why this process should take no new runs and be replaced, or ""; it may pass, when tools return."""
        if not self.exhausted:
            return ""
        return (
            f"{self._quarantined} tool threads are held by calls that were given up on (quarantine {self.quarantine})"
        )

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread, with the caller's context variables; the call and probe are the current ones.

        The future fails with `ToolQueueTimeout` when no thread is free in time.
        """
        if kwargs:
            raise TypeError("the tool pool takes positional arguments only; bind others with functools.partial")
        context = contextvars.copy_context()
        call = current_call()
        job = _Job(
            self,
            partial(context.run, fn, *args),
            call.call if call is not None else "",
            current_probe(),
            context,
        )
        with self._lock:
            if self._closed:
                raise RuntimeError("the tool pool is closed")
            if len(self._waiting) >= QUEUE_MAX:
                job.set_exception(self._refusal("the queue is full"))
                return job
            self._waiting.append(job)
            self._grow()
            self._work.notify()
        self._arm(job)
        return job

    def close(self, limit_s: float) -> int:
        """Take no more work, wait at most `limit_s` seconds for the threads; how many are still busy."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = list(self._waiting), deque()
            self._work.notify_all()
            alive = list(self._alive)
        for job in waiting:
            job.cancel()
        until = time.monotonic() + limit_s
        for thread in alive:
            thread.join(max(0.0, until - time.monotonic()))
        return self.threads

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `close`: part of the Executor's interface; `wait` is bounded by the queue deadline."""
        del cancel_futures
        self.close(self._queue_s if wait else 0.0)

    def _arm(self, job: _Job) -> None:
        """Let the queue deadline fire on the caller's loop; without a loop the caller bounds its own wait."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        timer = loop.call_later(self._queue_s, self._expire, job)

        def disarm(_: Future[Any]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(timer.cancel)

        job.add_done_callback(disarm)

    def _expire(self, job: _Job) -> None:
        with self._lock:
            try:
                self._waiting.remove(job)
            except ValueError:
                return
            refusal = self._refusal(f"waited {self._queue_s:g} s")
        if job.set_running_or_notify_cancel():
            job.set_exception(refusal)

    def _refusal(self, why: str) -> ToolQueueTimeout:
        return ToolQueueTimeout(
            f"no thread was free for this tool ({why}; {len(self._alive)} busy, {self._quarantined} of them "
            "abandoned by runs that ended); the tool was not started"
        )

    def _grow(self) -> None:
        """Start a thread if work waits that no idle thread takes, and the bound allows one."""
        bound = self._threads_max + min(self._quarantined, self._quarantine_max)
        if len(self._waiting) <= self._idle or len(self._alive) >= bound:
            return
        self._started += 1
        thread = threading.Thread(target=self._serve, name=f"holdfast-tool-{self._started}", daemon=True)
        self._alive.add(thread)
        thread.start()

    def _serve(self) -> None:
        try:
            while (job := self._next()) is not None:
                if job.set_running_or_notify_cancel():
                    job.perform()
                del job  # an idle thread keeps nothing of its last call alive
        finally:
            with self._lock:
                self._alive.discard(threading.current_thread())

    def _next(self) -> _Job | None:
        """The next job, or None when this thread should end; takes the thread off the books then."""
        until = time.monotonic() + IDLE_S
        with self._lock:
            surplus = len(self._alive) > self._threads_max + self._quarantined
            while not self._waiting and not self._closed and not surplus:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._idle += 1
                self._work.wait(left)
                self._idle -= 1
            if self._waiting and not self._closed:
                return self._waiting.popleft()
            self._alive.discard(threading.current_thread())
            return None

    def _gave_up(self, job: _Job) -> None:
        """The caller no longer waits for `job`."""
        with self._lock:
            if job.running() and not job.returned and not job.quarantined:
                job.quarantined = True
                self._quarantined += 1
                self._grow()
            elif job in self._waiting:
                self._waiting.remove(job)

    def _returned(self, job: _Job) -> None:
        """The function of `job` has returned; its thread is useful again."""
        with self._lock:
            job.returned = True
            if job.quarantined:
                job.quarantined = False
                self._quarantined -= 1

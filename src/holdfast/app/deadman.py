"""Ends an orphaned worker whose interpreter is held by one long call into C, where no thread of ours can run.

The kernel keeps a timer on the processor time of the loop's thread, and a thread of ours winds it up again and again
while the gateway lives. A call that keeps the interpreter's lock uses that time and lets nobody wind. Time that the
process spends waiting, or stopped by Ctrl-Z, does not count. Where the kernel has no such timer there is none.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Final

_THREAD_CPU_TIME: Final = 3  # CLOCK_THREAD_CPUTIME_ID
_BY_SIGNAL: Final = 0  # SIGEV_SIGNAL


class _Event(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class _Timer(ctypes.Structure):
    _fields_ = (("every", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


class Deadman:
    """SIGKILL for this process, once the thread that made this has used `seconds` of a processor without `wind`."""

    def __init__(self, seconds: float) -> None:
        """Take the timer; nothing runs before the first `wind`."""
        self.seconds = seconds
        self._timer: ctypes.c_void_p | None = None
        if not sys.platform.startswith("linux"):
            return
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            self._set = libc.timer_settime
            timer = ctypes.c_void_p()
            event = _Event(signal=signal.SIGKILL, notify=_BY_SIGNAL)
            if libc.timer_create(_THREAD_CPU_TIME, ctypes.byref(event), ctypes.byref(timer)) == 0:
                self._timer = timer
        except (AttributeError, OSError):
            return

    def wind(self) -> None:
        """Give another `seconds`; from any thread."""
        if self._timer is not None:
            whole = int(self.seconds)
            first = (ctypes.c_long * 2)(whole, int((self.seconds - whole) * 1e9))
            self._set(self._timer, 0, ctypes.byref(_Timer(first=first)), None)

"""How a process of ours uses its interpreter: shared between its loop and its threads, and not swept for nothing."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

SWITCH_S: Final = 0.00005


def share_fairly() -> None:
    """Let a thread that waits for the interpreter have it after 50 microseconds instead of 5 milliseconds.

    An append is some thirty steps of the writer thread, each of which gives the interpreter up and must get it back.
    Beside a loop that never rests (one model at full speed) each step waited a whole interval: a commit of 0.2 ms took
    up to 1.3 s (5,000 tokens in 1.4 s reached readers as 2 to 5 deltas; with this as 57, the worst gap 28 ms), and so
    did a neighbour's. What it costs is within the noise: the tokens per second are the same.
    """
    sys.setswitchinterval(SWITCH_S)


@contextmanager
def unswept() -> Iterator[None]:
    """Import large libraries within: nothing of theirs is garbage, and looking for some takes a tenth of the time."""
    swept = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if swept:
            gc.enable()


def settle_imports() -> None:
    """What this process has imported stays to its end: it is looked at no more, whenever garbage is collected.

    With a worker's libraries a full collection took 80 ms, in which the loop stands still.
    """
    gc.freeze()

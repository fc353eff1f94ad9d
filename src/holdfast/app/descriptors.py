"""How many connections this process can have: each is a descriptor, and the system gives out only so many.

Without the last few nothing can be answered any more, the probes neither: a crowd would look like a dead server to
whatever restarts dead servers.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

from holdfast.telemetry import Log

OURS: Final = 192  # the store's, the worker's pipes, logs, probes, and what a model needs in one process


def raise_limit(connections: int) -> None:
    """Take as many descriptors as `connections` need, where the soft limit alone forbids it (it is often 1,024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OURS if hard == resource.RLIM_INFINITY else min(connections + OURS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def that_fit(connections: int, log: Log) -> int:
    """`connections`, or fewer where there are not descriptors for all; that is said."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= connections + OURS:
        return connections
    fit = max(1, soft - OURS)
    log.write(
        "degraded",
        what="connections",
        why=f"{fit} instead of {connections}: this process may have {soft} files open",
        remedy=f"ulimit -n {connections + OURS}, or LimitNOFILE= in a unit, or set connections to {fit}",
    )
    return fit

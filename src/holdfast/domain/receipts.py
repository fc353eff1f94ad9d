"""The receipt of a run that did not complete: what was stopped, when, and what could not be."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from holdfast.domain.digest import OpenCall
from holdfast.domain.events import timestamp

Ended = Literal["cancelled", "killed", "abandoned", "finished", "unknown"]
By = Literal["worker", "heartbeat", "reaper"]


class ToolEnd(msgspec.Struct, frozen=True):
    """How one tool call ended."""

    call: str
    name: str
    ended: Ended


def receipt(
    *,
    requested_ms: int,
    ended_ms: int,
    upstream_closed_ms: int | None,
    tools: list[ToolEnd],
    abandoned: bool,
    by: By,
) -> dict[str, Any]:
    """The receipt as it stands in the log; times in wall milliseconds, `upstream_closed_ms` since the request."""
    return {
        "requested_at": timestamp(requested_ms),
        "ended_at": timestamp(ended_ms),
        "elapsed_ms": max(0, ended_ms - requested_ms),
        "upstream_closed_ms": upstream_closed_ms,
        "tools": [{"call": t.call, "name": t.name, "ended": t.ended} for t in tools],
        "abandoned": abandoned,
        "by": by,
    }


def reaper_receipt(
    requested_ms: int,
    ended_ms: int,
    open_calls: list[OpenCall],
    *,
    killed: bool = False,
    cut_off: bool = False,
    unbegun: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """The honest receipt of an end from outside: upstream unknown, unfinished tools abandoned.

    With `killed` the process that ran them is known to be dead: they are killed, and nothing is abandoned. With
    `cut_off` somebody worked on the run until now and did not answer, and may do so still. Those in
    `unbegun` waited for a decision: they never ran, and are cancelled.
    """
    left: Ended = "killed" if killed else "abandoned"
    tools = [ToolEnd(c.call, c.name, "cancelled" if c.call in unbegun else left) for c in open_calls]
    return receipt(
        requested_ms=requested_ms,
        ended_ms=ended_ms,
        upstream_closed_ms=None,
        tools=tools,
        abandoned=cut_off or any(tool.ended == "abandoned" for tool in tools),
        by="reaper",
    )

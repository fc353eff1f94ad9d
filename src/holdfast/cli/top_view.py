"""What `holdfast top` shows, as lines of text. Pure: a look at the deployment goes in, lines come out."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from holdfast.cli.output import next_timer, table
from holdfast.domain.words import age, duration, one_line

ORDER: Final = ("running", "waiting", "queued")  # of states on the page
_CELL_MAX: Final = 32
# What a narrow terminal cuts off stands last.
_RUNS: Final = ("RUN", "STATE", "PROGRESS", "ELAPSED", "TRY", "WAITS ON", "SESSION", "AGENT", "ENDS BY")
_WORKERS: Final = ("WORKER", "SEEN", "RUNS", "LAG", "TOOLS", "QUARANTINE", "TAKES RUNS", "BREAKERS")


class Look(NamedTuple):
    """What a server said at one moment.

    Attributes:
        at: When, of our clock.
        url: Of the server.
        workers: As GET /api/workers has them.
        agents: The served agents.
        runs: Records that have not ended, in the order of the page; `inspection` in those that were looked into.
        counts: How many runs there are of each state, where "+" says that there are more.
    """

    at: dt.datetime
    url: str
    workers: list[dict[str, Any]]
    agents: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    counts: dict[str, str]

    def document(self) -> dict[str, Any]:
        """The look as JSON."""
        return {
            "at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "url": self.url,
            "counts": self.counts,
            "workers": self.workers,
            "agents": self.agents,
            "runs": self.runs,
        }


def in_order(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What runs before what waits before what is queued, oldest first."""
    return sorted(runs, key=lambda r: (ORDER.index(r["state"]), r.get("started_at") or r.get("created_at") or ""))


def whole_page(look: Look) -> list[str]:
    """The look as one plain page."""
    return [headline(look), "", *worker_lines(look), "", *run_lines(look)]


def headline(look: Look) -> str:
    """Where, when, and how many."""
    counted = ", ".join(f"{look.counts.get(state, '0')} {state}" for state in ORDER)
    workers = f"{len(look.workers)} worker{'s' if len(look.workers) != 1 else ''}"
    return f"holdfast top  {look.at.astimezone():%H:%M:%S}  {counted}  {workers}  {look.url}"


def worker_lines(look: Look) -> list[str]:
    """A line for each worker, below a heading; or what it means that there is none."""
    if not look.workers:
        return ["no worker has reported within a minute: what is queued waits for one"]
    return table(_WORKERS, [_worker(worker, look.at) for worker in look.workers]).splitlines()


def run_lines(look: Look) -> list[str]:
    """A line for each run, below a heading; or that there is none."""
    if not look.runs:
        return ["no run is running, waiting or queued"]
    return table(_RUNS, [_run(record, look.at) for record in look.runs]).splitlines()


def fitted(lines: Sequence[str], width: int, height: int) -> list[str]:
    """As much as there is room for; the last line says what was left out."""
    cut = [line[:width] for line in lines]
    if len(cut) <= height:
        return cut
    return [*cut[: height - 1], f".. {len(cut) - height + 1} more lines"[:width]]


def _worker(worker: Mapping[str, Any], now: dt.datetime) -> tuple[Any, ...]:
    facts = worker.get("facts") or {}
    return (
        worker["worker"],
        f"{age(worker.get('seen_at'), now)} ago",
        f"{facts.get('runs', '?')}/{facts.get('concurrency', '?')}",
        duration(facts["loop_lag_ms"]) if "loop_lag_ms" in facts else "",
        _tools(facts),
        f"{facts.get('quarantined', 0)}/{facts.get('quarantine', '?')}",
        _takes(facts),
        _breakers(facts.get("breakers") or ()),
    )


def _tools(facts: Mapping[str, Any]) -> str:
    """Threads and processes at work for tools, and what waits for one."""
    at_work = facts.get("tool_threads", 0) + facts.get("tool_processes", 0)
    waiting = facts.get("tools_queued", 0) + facts.get("tool_processes_queued", 0)
    return f"{at_work}+{waiting} waiting" if waiting else str(at_work)


def _takes(facts: Mapping[str, Any]) -> str:
    if facts.get("claims_paused"):
        return "paused: its loop lags"
    return "yes" if facts.get("accepting", True) else "no"


def _breakers(breakers: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for each in breakers:
        words = f"{each.get('upstream')} {each.get('state')}"
        if each.get("state") == "open" and each.get("opens_in_s"):
            words += f" for {each['opens_in_s']:.0f} s"
        elif each.get("failures"):
            words += f" ({each['failures']} failed)"
        shown.append(words)
    return ", ".join(shown)


def _run(record: Mapping[str, Any], now: dt.datetime) -> tuple[Any, ...]:
    inspection = record.get("inspection") or {}
    progress_ms = inspection.get("progress_ms", inspection.get("since_ms"))
    return (
        record["id"],
        f"stopping: {record['stopping']}" if record.get("stopping") else record["state"],
        "" if progress_ms is None else f"{duration(progress_ms)} ago",
        _elapsed(record, inspection, now),
        record.get("attempt"),
        _cut(_waits_on(inspection)),
        _cut(record.get("session")),
        _cut(record.get("agent")),
        next_timer(inspection),
    )


def _elapsed(record: Mapping[str, Any], inspection: Mapping[str, Any], now: dt.datetime) -> str:
    """By the worker's clock where it says so: ours may be another machine's."""
    if inspection.get("elapsed_ms") is not None:
        return duration(inspection["elapsed_ms"])
    return age(record.get("started_at") or record.get("created_at"), now)


def _waits_on(inspection: Mapping[str, Any]) -> str:
    on, phase = str(inspection.get("waiting_on") or ""), str(inspection.get("phase") or "")
    return on if not phase or phase in ORDER or phase in on else f"{on} ({phase})"


def _cut(value: Any) -> str:
    text = one_line(value) if value else ""
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 2] + ".."

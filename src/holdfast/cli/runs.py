"""Commands that look at runs, stop them and let them go on: runs, events, stop, resume, inspect, sessions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.output import (
    event_line,
    next_timer,
    print_json,
    record_words,
    stack_lines,
    table,
    timer_name,
    wait_words,
)
from holdfast.cli.remote import FAILED, Remote, check_id, remote_options
from holdfast.domain.runs import Policy, State
from holdfast.domain.words import age, duration, one_line

if TYPE_CHECKING:
    from holdfast.client import Client

STUCK_MS: Final = 10_000
_STOP_WAIT_S: Final = 5.0
_PAGE: Final = 500
_STUCK_MAX: Final = 200  # of each state

_run_argument = click.argument("run", callback=check_id)


@click.command()
@click.option(
    "--stuck", is_flag=True, help="Only unfinished runs that were told to stop, or made no progress for 10 s."
)
@remote_options
def runs(remote: Remote, stuck: bool) -> None:
    """List runs, newest first."""
    with remote.client() as client:
        if stuck:
            _print_stuck(remote, list(_stuck(client)))
            return
        page = client.runs()
    if remote.as_json:
        print_json(page)
        return
    rows = [(r["id"], r["state"], _why(r), r.get("agent"), r["session"], _age(r)) for r in page["runs"]]
    click.echo(table(("RUN", "STATE", "REASON", "AGENT", "SESSION", "AGE"), rows))


@click.command()
@_run_argument
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended; Ctrl-C leaves it running.")
@remote_options
def events(remote: Remote, run: str, follow: bool) -> None:
    """Print a run's events, one a line."""
    with remote.client() as client:
        try:
            for event in _followed(client, run) if follow else _stored(client, run):
                if remote.as_json:
                    print_json(event)
                else:
                    click.echo(event_line(event))
        except KeyboardInterrupt:
            click.echo(f"holdfast: left; run {run} goes on", err=True)


@click.command()
@_run_argument
@remote_options
def stop(remote: Remote, run: str) -> None:
    """Stop a run and say what was stopped."""
    with remote.client() as client:
        record = client.stop(run, wait_s=_STOP_WAIT_S)
    if remote.as_json:
        print_json(record)
    else:
        click.echo("\n  ".join(record_words(record)))
    if not State(record["state"]).terminal:
        raise click.exceptions.Exit(FAILED)


@click.command()
@_run_argument
@remote_options
def resume(remote: Remote, run: str) -> None:
    """Go on with a run that failed, was cancelled, or is stuck.

    One that still runs is stopped first. Its prompt is given again to its session, behind what is there, and the
    agent finds in the history what the run had said and which tools had finished. Given twice, it makes one run.
    """
    with remote.client() as client:
        record = client.record(run)
        _refuse_to_resume(record)
        if not State(record["state"]).terminal:
            record = client.stop(run, wait_s=_STOP_WAIT_S)
            _refuse_to_resume(record)  # it may have ended by itself
            if not remote.as_json:
                click.echo("\n  ".join(record_words(record)))
        made = client.start(
            next(_stored(client, run))["input"],
            session=record["session"],
            agent=record["agent"],
            on_busy=Policy.ENQUEUE,
            metadata=record.get("metadata"),
            idempotency_key=f"resume-{run}",
        )
    if remote.as_json:
        print_json(made)
    else:
        click.echo(f"run {made['id']} goes on with it in session {made['session']}: holdfast events -f {made['id']}")


@click.command()
@_run_argument
@remote_options
def inspect(remote: Remote, run: str) -> None:
    """Say why a run is not finished.

    That is: what it waits on, since when, and which timer ends that.
    """
    with remote.client() as client:
        inspection = client.inspect(run)
    if remote.as_json:
        print_json(inspection)
        return
    click.echo(f"run {run} waits on {wait_words(inspection)}")
    for name, value in inspection.items():
        if name == "timers":
            for timer in value:
                left = duration(timer.get("left_ms"))
                click.echo(f"  timer {timer_name(timer['name'], inspection)}: {left} left")
        elif name in ("stacks", "threads"):
            click.echo("\n".join(stack_lines(value)) if value else "", nl=bool(value))
        elif name != "run" and value not in (None, "", [], {}):
            click.echo(f"  {name}: {one_line(value)}")


@click.command()
@remote_options
def sessions(remote: Remote) -> None:
    """List sessions, most recently used first."""
    with remote.client() as client:
        page = client.sessions()
    if remote.as_json:
        print_json(page)
        return
    rows = [
        (s["id"], s.get("runs"), s.get("queued"), _active_id(s.get("active")), age(s.get("updated_at")))
        for s in page["sessions"]
    ]
    click.echo(table(("SESSION", "RUNS", "QUEUED", "ACTIVE", "AGE"), rows))


def _followed(client: Client, run: str) -> Iterator[dict[str, Any]]:
    client.record(run)  # an unknown run or server is an error at once, not a reason to come back

    def interrupted(cause: str, wait_s: float) -> None:
        click.echo(f"holdfast: interrupted ({cause}); again in {wait_s:.1f} s", err=True)

    return client.events(run, on_interrupt=interrupted)


def _stored(client: Client, run: str) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = client.page(run, after, limit=_PAGE)
        yield from page["events"]
        if not page["events"] or page["events"][-1]["seq"] >= page["head"]:
            return
        after = page["events"][-1]["seq"]


def _stuck(client: Client) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Unfinished runs that should move and do not. A run that waits for a person is not one of them."""
    for state in (State.RUNNING, State.QUEUED):
        for record in client.runs(state=state, limit=_STUCK_MAX)["runs"]:
            inspection = client.inspect(record["id"])
            if State(inspection["state"]).terminal:
                continue
            since_ms = inspection.get("since_ms")
            if record.get("stopping") or since_ms is None or since_ms >= STUCK_MS:
                yield record, inspection


def _print_stuck(remote: Remote, found: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    if remote.as_json:
        print_json({"runs": [{**record, "inspection": inspection} for record, inspection in found]})
        return
    rows = [
        (r["id"], r["state"], _why(r), i.get("waiting_on"), _since(i), next_timer(i), r["session"]) for r, i in found
    ]
    click.echo(table(("RUN", "STATE", "REASON", "WAITS ON", "FOR", "ENDS BY", "SESSION"), rows))


def _refuse_to_resume(record: dict[str, Any]) -> None:
    """End the command where a run needs nobody to go on with it."""
    if why := _not_resumable(record):
        click.echo(f"holdfast: {why}", err=True)
        raise click.exceptions.Exit(FAILED)


def _not_resumable(record: dict[str, Any]) -> str:
    run, state = record["id"], State(record["state"])
    if state is State.COMPLETED:
        return f"run {run} has completed; send its session {record['session']} another prompt"
    if state is State.WAITING:
        return f"run {run} waits for a decision, and goes on with it; or stop it first: holdfast stop {run}"
    if state is State.QUEUED:
        return f"run {run} is in the queue and begins by itself; holdfast inspect {run} says what it waits on"
    return ""


def _since(inspection: dict[str, Any]) -> str:
    since_ms = inspection.get("since_ms")
    return "" if since_ms is None else duration(since_ms)


def _why(record: dict[str, Any]) -> str:
    stopping = record.get("stopping")
    return record.get("reason") or (f"stopping: {stopping}" if stopping else "")


def _age(record: dict[str, Any]) -> str:
    return age(record.get("created_at"))


def _active_id(active: Any) -> str:
    return active["id"] if isinstance(active, dict) else active or ""

"""Commands that run a server in this process: serve, demo, rehearse."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from holdfast.config import Settings

_FAILED = 1
_USAGE = 2

_NOTHING_TO_SERVE = """\
cannot start: there is neither an agent nor a model to serve. Give one of
  holdfast serve module:attr                        your own agent, looked up from the current directory
  holdfast serve --model NAME --model-url URL       a model of any OpenAI-compatible server
  holdfast serve --model provider:name              a model by pydantic-ai's name, such as openai:gpt-5
or try `holdfast demo`: it needs neither, and answers with the bundled rehearsal model."""

_NO_WORKER = "Serve what `holdfast worker` works on elsewhere; needs --store redis://..."
_AGENTS_ELSEWHERE = "--no-worker serves the agents and models of the workers: name them at `holdfast worker`"

_port = click.IntRange(0, 65535)


_SERVED = (
    click.argument("agents", nargs=-1, metavar="[[NAME=]MODULE:ATTR]..."),
    click.option("--model", help="Model: NAME with --model-url, or provider:name. Replaces the agents' own."),
    click.option("--model-url", help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1."),
    click.option("--store", help="sqlite:///file (default sqlite:///holdfast.db) or another store's URL."),
    click.option("--host", help="Address to listen on (default 127.0.0.1)."),
    click.option("--port", type=_port, help="Port to listen on (default 8484)."),
    click.option("--profile", type=click.Choice(["dev", "staging", "production"]), help="Default dev."),
    click.option("--no-worker", "worker", is_flag=True, flag_value=False, default=None, help=_NO_WORKER),
    click.option("--in-process", is_flag=True, default=None, help="Run the worker in the gateway's process."),
)


def _served(command: Callable[..., None]) -> Callable[..., None]:
    """What is served, and how: the same for `serve` and for `check`."""
    for option in reversed(_SERVED):
        command = option(command)
    return command


@click.command()
@_served
def serve(agents: tuple[str, ...], **options: Any) -> None:
    """Serve agents over HTTP.

    Each agent is MODULE:ATTR, looked up from the current directory; the first is the default. Without one,
    --model is served as a plain chat agent.

    The first SIGTERM or SIGINT drains, the second stops all runs now.
    """
    _serve(agents, options, rehearsal=False)


@click.command()
@_served
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def check(agents: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Check all that `serve` with the same options needs.

    Prints a table, and exits with 1 where anything fails. Serves nothing, takes no port, and may be used
    beside a server that runs.
    """
    settings = _asked(agents, options, rehearsal=False)
    from holdfast.app.checking import check
    from holdfast.app.startup import table
    from holdfast.telemetry import Log

    report = check(settings, list(agents), Log(stream=io.StringIO()))
    if as_json:
        click.echo(json.dumps({**report.document(), "ok": not report.failed}))
    else:
        click.echo("\n".join(table(report)))
        click.echo(f"{len(report.broken)} of {len(report.findings)} failed" if report.failed else "all well")
    raise click.exceptions.Exit(_FAILED if report.failed else 0)


@click.command()
@click.argument("agents", nargs=-1, metavar="[[NAME=]MODULE:ATTR]...")
@click.option("--store", help="redis://host:port/db, as the servers have it.")
@click.option("--model", help="Model: NAME with --model-url, or provider:name. Replaces the agents' own.")
@click.option("--model-url", help="An OpenAI-compatible server, such as http://127.0.0.1:8000/v1.")
@click.option("--concurrency", type=click.IntRange(1, 4096), help="Runs at once in each worker (default 64).")
@click.option("--processes", type=click.IntRange(1, 64), help="Workers, each a process of its own (default 1).")
@click.option("--profile", type=click.Choice(["dev", "staging", "production"]), help="Default dev.")
@click.option("--health-port", type=_port, help="Answer /livez, /readyz, /startupz and /metrics there (default: not).")
@click.option("--health-host", help="Address for that (default 127.0.0.1; others want a key in api_keys_file).")
def worker(agents: tuple[str, ...], **options: Any) -> None:
    """Work on the runs of servers elsewhere, through Redis.

    The first SIGTERM or SIGINT drains and gives back what did not end, the second stops all runs now.
    """
    settings = _settings(options)
    if not (agents or settings.model):
        _refuse(_NOTHING_TO_SERVE)
    from holdfast.app.errors import StartError
    from holdfast.app.interpreter import unswept

    with unswept():
        from holdfast.app.working import work
    try:
        code = work(settings, list(agents), announce=click.echo)
    except StartError as error:
        _refuse(str(error))
    raise click.exceptions.Exit(code)


@click.command()
@click.option("--port", type=_port, help="Port to listen on (default 8484).")
@click.option("--store", help="sqlite:///file (default sqlite:///holdfast.db) or another store's URL.")
def demo(**options: Any) -> None:
    """Serve the bundled rehearsal model: no key, no account.

    It answers by a script that you write into the prompt; every page and record says so.
    """
    _serve((), options, rehearsal=True)


@click.command()
@click.option("--port", type=_port, default=8485, show_default=True, help="Port to listen on.")
def rehearse(port: int) -> None:
    """Run the rehearsal model alone, to test agents against.

    It is an OpenAI-compatible server that answers by a script, faults included.
    """
    _refuse_windows()
    from holdfast.rehearsal import CannotListen, RehearsalServer, run

    def announce(server: RehearsalServer) -> None:
        click.echo(f"rehearsal model at {server.url}: answers by script, no real model")

    try:
        run("127.0.0.1", port, announce)
    except CannotListen as error:
        _refuse(f"cannot start: {error}")


def _asked(agents: Sequence[str], options: dict[str, Any], *, rehearsal: bool) -> Settings:
    """The settings; refused where there is nothing to serve, or two answers to what."""
    settings = _settings(options)
    if not settings.worker and (agents or settings.model):
        _refuse(f"cannot start: {_AGENTS_ELSEWHERE}", _USAGE)
    if settings.worker and not (agents or settings.model or rehearsal):
        _refuse(_NOTHING_TO_SERVE)
    return settings


def _serve(agents: Sequence[str], options: dict[str, Any], *, rehearsal: bool) -> None:
    settings = _asked(agents, options, rehearsal=rehearsal)
    from holdfast.app.errors import StartError
    from holdfast.app.interpreter import unswept

    with unswept():
        from holdfast.app.serving import serve
    try:
        code = serve(settings, list(agents), announce=click.echo, rehearsal=rehearsal)
    except StartError as error:
        _refuse(str(error))
    raise click.exceptions.Exit(code)


def _settings(options: dict[str, Any]) -> Settings:
    _refuse_windows()
    from holdfast.config import SettingsError, load

    try:
        return load(options)
    except SettingsError as error:
        _refuse(f"cannot start: {error}", _USAGE)


def _refuse_windows() -> None:
    if platform.system() == "Windows":
        _refuse(
            "cannot start: the server runs on Linux and macOS only, because Stop needs process groups and"
            " kill; run it in WSL or a container. The client commands work here"
        )


def _refuse(text: str, code: int = _FAILED) -> NoReturn:
    click.echo(f"holdfast: {text}", err=True)
    raise click.exceptions.Exit(code)

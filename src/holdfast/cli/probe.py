"""`holdfast probe`: says what it will send, sends it, and prints a line for each scenario as it is found."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.output import print_json, table
from holdfast.cli.remote import FAILED, UNREACHABLE
from holdfast.domain.words import clean, duration

if TYPE_CHECKING:
    from holdfast.probe import Options, Probe, Report, Result, Scenario, Target

_OUTCOME_WIDTH: Final = 7


@click.command()
@click.argument("url", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document at the end.")
@click.option("--list", "listing", is_flag=True, help="List the scenarios, and send nothing.")
@click.option("--only", multiple=True, metavar="NAME", help="A scenario or a group of them; may be repeated.")
@click.option("--api-key", default=None, help="Key. [HOLDFAST_API_KEY, for a Holdfast only]")
@click.option("--holdfast-key", envvar="HOLDFAST_API_KEY", default=None, hidden=True)
@click.option("--model", default=None, help="The model, or a Holdfast's agent; the server's first by default.")
@click.option("--session-header", default=None, help="What names a session; given, it must be heeded. [X-Session-Id]")
@click.option("--prompt", default=None, help="What to ask a model that follows no script.")
@click.option("--long-prompt", default=None, help="What such a model answers for several seconds.")
@click.option("--max-tokens", type=click.IntRange(1), default=None, help="Sent with each chat completion.")
@click.option("--tool", default=None, metavar="CALL", help='A tool to stop. [sleep {"seconds": 30}]')
@click.option("--blocking-tool", default=None, metavar="CALL", help='One that cannot. [block {"seconds": 4}]')
@click.option("--upstream-stats", default=None, metavar="URL", help="The rehearsal model behind it: GET /_stats.")
@click.option("--timeout", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True, help="Longest wait, s.")
@click.option("--total", type=click.FloatRange(1, 86400), default=600.0, show_default=True, help="Longest probe, s.")
@click.option("--slack", type=click.FloatRange(0, 60), default=0.5, show_default=True, help="Added to limits, s.")
@click.option("--seed", type=int, default=None, help="Of what is chosen by chance; repeats an earlier probe.")
def probe(url: str | None, as_json: bool, listing: bool, **given: Any) -> None:
    """Find out how a server of streamed answers hangs.

    Drives it through the scenarios in which such servers hang. URL is a Holdfast, or any server with OpenAI's chat
    completions. What cannot be tried is skipped, never passed. Exit codes: 0 all passed, 1 any
    failed, 2 usage, 3 server unreachable.
    """
    from holdfast.probe import UnknownScenario, choose

    try:
        chosen = choose(given["only"])
    except UnknownScenario as error:
        raise click.UsageError(str(error)) from error
    if listing:
        _print_list(chosen, as_json=as_json)
        return
    if url is None:
        raise click.UsageError("missing the URL of a server, such as http://127.0.0.1:8484")
    _probe(_options(url, given), chosen, as_json=as_json)


def _options(url: str, given: dict[str, Any]) -> Options:
    """The options as given; what was not given is left to its default."""
    from holdfast.probe import Options, Tool

    seed = secrets.randbelow(1_000_000) if given["seed"] is None else given["seed"]
    named = {
        name: given[name]
        for name in ("api_key", "holdfast_key", "model", "session_header", "max_tokens", "upstream_stats")
    }
    named |= {name: given[name] for name in ("prompt", "long_prompt")}
    try:
        named |= {name: Tool.parse(given[name]) for name in ("tool", "blocking_tool") if given[name] is not None}
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return Options(
        url,
        sessions=given["session_header"] is not None,
        timeout_s=given["timeout"],
        total_s=given["total"],
        slack_s=given["slack"],
        seed=seed,
        **{name: value for name, value in named.items() if value is not None},
    )


def _probe(options: Options, chosen: tuple[Scenario, ...], *, as_json: bool) -> None:
    """Run it to its end, or to Ctrl-C; then the report and the exit code."""
    import asyncio

    from holdfast.probe import Refused, Unreachable

    found: list[Probe] = []
    try:
        asyncio.run(_run(options, chosen, found, as_json=as_json))
    except Unreachable as error:
        click.echo(f"holdfast: {options.url} cannot be reached: {error}; is the address right, and is it up?", err=True)
        raise click.exceptions.Exit(UNREACHABLE) from error
    except (Refused, ValueError) as error:
        raise click.UsageError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("holdfast: interrupted", err=True)
    if not found:
        raise click.exceptions.Exit(FAILED)
    report = found[0].report
    if as_json:
        print_json(report.document())
    else:
        click.echo(_summary(report))
    if not report.ok:
        raise click.exceptions.Exit(FAILED)


async def _run(options: Options, chosen: tuple[Scenario, ...], found: list[Probe], *, as_json: bool) -> None:
    from holdfast.probe import Probe, Wire, detect

    wire = Wire(options.url, options.api_key, options.timeout_s)
    try:
        target = await detect(wire, options)
        click.echo(_announcement(options, target, chosen), err=True)
        probe = Probe(options, wire, target, chosen)
        found.append(probe)
        lines = _Lines(max(len(scenario.name) for scenario in chosen), err=as_json)
        try:
            await probe.run(lines.add)
        finally:
            lines.flush()
    finally:
        await wire.aclose()


def _announcement(options: Options, target: Target, chosen: tuple[Scenario, ...]) -> str:
    """What will be sent, before anything is: a real model costs money."""
    from holdfast.probe import plan

    fit, prompts = plan(target, chosen)
    costs = "which costs nothing" if target.rehearsal else "and a real model costs money"
    return (
        f"holdfast: {options.url} is {clean(target.words)}\n"
        f"holdfast: {fit} of {len(chosen)} scenarios can be tried there, with at most {prompts} prompts, {costs}; "
        f"after a failure one more.\n"
        f"holdfast: each wait ends after {options.timeout_s:g} s, all of it after {options.total_s:g} s; "
        f"Ctrl-C ends it at once"
    )


class _Lines:
    """Prints a line for each result as it is found; skips in a row for one reason share a line."""

    def __init__(self, width: int, *, err: bool) -> None:
        self._width = width
        self._err = err
        self._skipped: list[Result] = []

    def add(self, result: Result) -> None:
        """One more."""
        skipped = result.outcome == "skipped"
        if not skipped or (self._skipped and self._skipped[0].seen != result.seen):
            self.flush()
        if skipped:
            self._skipped.append(result)
        else:
            click.echo(_line(result, self._width), err=self._err)

    def flush(self) -> None:
        """Print the skips that are kept back."""
        if self._skipped:
            first, names = self._skipped[0], [result.name for result in self._skipped]
            line = _line(first, self._width)
            if len(names) > 1:
                line += f"\n{' ' * (_OUTCOME_WIDTH + 2)}and for the same reason: {', '.join(names[1:])}"
            click.echo(line, err=self._err)
            self._skipped.clear()


def _line(result: Result, width: int) -> str:
    figures = ", ".join(_figure(name, value) for name, value in result.figures.items())
    line = f"{result.outcome:<{_OUTCOME_WIDTH}}  {result.name:<{width}}  {_words(result.seen)}"
    if figures:
        line += f" [{figures}]"
    if result.expected:
        indent = " " * (_OUTCOME_WIDTH + 2)
        line += f"\n{indent}expected: {result.expected}\n{indent}breaks: {result.promise}"
    return line


def _figure(name: str, value: float) -> str:
    words, _, unit = name.rpartition("_")
    return f"{words.replace('_', ' ')} {duration(value)}" if unit == "ms" else f"{name.replace('_', ' ')} {value:g}"


def _words(text: str) -> str:
    return " ".join(clean(text).split())


def _summary(report: Report) -> str:
    counts = ", ".join(f"{number} {name}" for name, number in report.counts().items())
    left = report.planned - len(report.results)
    words = [f"{counts} in {duration(report.took_ms)}, with {report.prompts} prompts"]
    if report.cut:
        words.append(f"cut short: {report.cut}; {left} were not tried")
    elif not report.counts()["passed"]:
        words.append("nothing was proved: no scenario passed")
    return "\n".join(words)


def _print_list(chosen: tuple[Scenario, ...], *, as_json: bool) -> None:
    if as_json:
        names = ("name", "about", "promise", "prompts", "native", "scripted")
        print_json({"scenarios": [{name: getattr(s, name) for name in names} for s in chosen]})
        return
    rows = [
        (s.name, s.prompts, "Holdfast" if s.native else "any", "rehearsal" if s.scripted else "any", s.about)
        for s in chosen
    ]
    click.echo(table(("SCENARIO", "PROMPTS", "SERVER", "MODEL", "WHAT"), rows))

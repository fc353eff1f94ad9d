"""The command line. Each command imports what it needs when it runs, so that `holdfast --version` is quick."""

from __future__ import annotations

import click

from holdfast import __version__
from holdfast.cli.chat import chat
from holdfast.cli.runs import events, inspect, runs, sessions, stop
from holdfast.cli.serve import demo, rehearse, serve

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="holdfast")
def main() -> None:
    """Run AI agents so that no run ever hangs.

    Try `holdfast demo`, and `holdfast chat` in a second terminal.
    """


for _command in (serve, demo, rehearse, runs, events, stop, inspect, sessions, chat):
    main.add_command(_command)

"""The command line. Each command imports what it needs when it runs, so that `holdfast --version` is quick."""

from __future__ import annotations

import click

from holdfast.cli import chat as _chat
from holdfast.cli import key as _key
from holdfast.cli import probe as _probe
from holdfast.cli import runs as _runs
from holdfast.cli import serve as _serve
from holdfast.cli import top as _top

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast", prog_name="holdfast")
def main() -> None:
    """Run AI agents so that no run ever hangs.

    Try `holdfast demo`, and `holdfast chat` in a second terminal.
    """


for _command in (
    _serve.serve,
    _serve.check,
    _serve.worker,
    _serve.demo,
    _serve.rehearse,
    _runs.runs,
    _runs.events,
    _runs.stop,
    _runs.resume,
    _runs.inspect,
    _runs.sessions,
    _top.top,
    _chat.chat,
    _key.key,
    _probe.probe,
):
    main.add_command(_command)

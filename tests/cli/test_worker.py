"""What `holdfast worker` and `serve --no-worker` refuse, before anything is started."""

import pytest
from click.testing import CliRunner

from holdfast.cli import main

NOBODY = "redis://127.0.0.1:1"
AGENT = "agents:agent"


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["worker", AGENT], "--store redis://"),
        (["worker", AGENT, "--store", NOBODY], "check that Redis runs"),
        (["worker", "--store", NOBODY], "neither an agent nor a model"),
        (["worker", AGENT, "--processes", "0"], "processes"),
        (["serve", "--no-worker"], "--store redis://"),
        (["serve", "--no-worker", AGENT, "--store", NOBODY], "holdfast worker"),
        (["serve", "--no-worker", "--model", "m", "--store", NOBODY], "holdfast worker"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_work_does_not_start(command: list[str], named: str) -> None:
    """P8: a clear refusal that says what to do."""
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (1, 2)
    assert named in result.output

"""The client commands: what they print, and the code they exit with."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from holdfast.cli import main

CLIENT_COMMANDS = [
    ["runs"],
    ["runs", "--stuck"],
    ["events", "r_1"],
    ["events", "r_1", "--follow"],
    ["stop", "r_1"],
    ["resume", "r_1"],
    ["inspect", "r_1"],
    ["sessions"],
    ["top"],
    ["top", "--once"],
    ["chat", "--session", "s_1"],
]


@pytest.mark.parametrize("command", CLIENT_COMMANDS, ids=" ".join)
def test_unreachable_server_is_exit_3_with_a_remedy(command, unused_url):
    """A script can tell a server that is down from a run that failed, and a person reads what to do."""
    result = CliRunner().invoke(main, [*command, "--url", unused_url])
    assert result.exit_code == 3
    assert f"cannot reach {unused_url}" in result.stderr
    assert "holdfast demo" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command",
    [
        ["stop"],
        ["events", "a b"],
        ["inspect", "x" * 129],
        ["runs", "--url", "localhost:8484"],
        ["chat", "--session", "/"],
        ["nonsense"],
        ["serve", "--port", "99999"],
        ["serve", "--profile", "prod"],
        ["demo", "app:agent"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(command):
    """A typing mistake is told apart from a failure."""
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2, result.output


def test_the_list_of_commands_says_each_in_whole_words():
    """A newcomer who reads `holdfast --help` in a narrow terminal finds no sentence that breaks off."""
    result = CliRunner().invoke(main, ["--help"], terminal_width=80)
    assert result.exit_code == 0
    for name, command in main.commands.items():
        first = str(command.help).partition("\n")[0].rstrip(".")
        assert f"  {name}" in result.stdout
        assert first in result.stdout


@pytest.mark.parametrize("command", [["events"], ["events", "-f"], ["stop"], ["resume"], ["inspect"]], ids=" ".join)
def test_unknown_run_is_exit_1_with_code_and_remedy(holdfast, command):
    """P8: the code of the catalogue and its remedy reach the person at the terminal."""
    result = holdfast(*command, "r_nobody")
    assert result.exit_code == 1
    assert "unknown_run: no such run; check the run id" in result.stderr


def test_runs_lists_the_newest_first(stub, holdfast):
    """What one looks for is usually the last thing one did."""
    stub.create("one")
    stub.create("slow two")
    lines = holdfast("runs").stdout.splitlines()
    assert lines[0].split() == ["RUN", "STATE", "REASON", "AGENT", "SESSION", "AGE"]
    assert [line.split()[:2] for line in lines[1:]] == [["r_2", "running"], ["r_1", "completed"]]


def test_stuck_says_what_a_run_waits_on_and_what_ends_that(stub, holdfast):
    """F81: the operator's question is which timer will end it."""
    stub.create("one")
    stub.create("slow two")
    result = holdfast("runs", "--stuck")
    assert "r_1" not in result.stdout
    assert "model" in result.stdout
    assert "run_deadline in 9 min" in result.stdout


def test_events_prints_one_line_an_event(stub, holdfast):
    """A log is read with grep."""
    stub.create("hello world")
    lines = holdfast("events", "r_1").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["1", "run.created"],
        ["2", "text.delta"],
        ["3", "text.delta"],
        ["4", "run.completed"],
    ]


def test_events_pages_through_a_long_log(stub, holdfast):
    """A log of any length is printed whole."""
    stub.create("w " * 1200)
    assert len(holdfast("events", "r_1").stdout.splitlines()) == 1202


def test_follow_goes_on_to_the_terminal_event(stub, holdfast):
    """The command ends when the run has ended."""
    stub.create("slow one")
    threading.Timer(0.3, stub.stop, ["r_1"]).start()
    result = holdfast("events", "r_1", "--follow")
    assert result.stdout.splitlines()[-1].split()[1] == "run.cancelled"


def test_stop_prints_the_receipt_in_words(stub, holdfast):
    """P2: what was stopped, when, and what could not be."""
    stub.create("slow one")
    result = holdfast("stop", "r_1")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "run r_1 cancelled: stopped",
        "  ended 41 ms after the request, by the worker",
        "  model connection closed after 12 ms",
        "  tool search cancelled",
        "  tool dig could not be stopped: abandoned, its result counts no more",
        "  something did not stop in time: it was cut off and can write nothing more",
    ]


def test_inspect_says_why_a_run_is_not_finished(stub, holdfast):
    """The first line is the answer, the rest is what it rests on."""
    stub.create("slow one")
    lines = holdfast("inspect", "r_1").stdout.splitlines()
    assert lines[0] == "run r_1 waits on model, for 12.0 s; run_deadline in 9 min"


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (["runs"], {"runs", "next"}),
        (["runs", "--stuck"], {"runs"}),
        (["stop", "r_1"], {"id", "state", "receipt"}),
        (["inspect", "r_1"], {"waiting_on", "timers"}),
        (["sessions"], {"sessions", "next"}),
    ],
)
def test_json_is_one_document(stub, holdfast, command, keys):
    """Whatever a person reads as text, a script reads as JSON."""
    stub.create("slow one")
    assert keys <= set(json.loads(holdfast(*command, "--json").stdout))


@pytest.mark.parametrize("follow", [[], ["--follow"]])
def test_events_as_json_are_one_object_a_line(stub, holdfast, follow):
    """The lines are the events of the log, as NDJSON."""
    stub.create("hello")
    lines = holdfast("events", "r_1", *follow, "--json").stdout.splitlines()
    assert [json.loads(line) for line in lines] == stub.logs["r_1"]


def test_address_and_key_come_from_the_environment(stub, monkeypatch):
    """One export serves a whole session."""
    monkeypatch.setenv("HOLDFAST_URL", stub.url)
    monkeypatch.setenv("HOLDFAST_API_KEY", "secret")
    assert CliRunner().invoke(main, ["runs"]).exit_code == 0
    assert stub.keys == ["Bearer secret"]


def test_what_a_model_says_cannot_steer_the_terminal(stub, holdfast):
    """An escape sequence in an answer stays text."""
    stub.create("evil \x1b]0;title\x07\x1b[2J")
    for command in (["events", "r_1"], ["events", "r_1", "--follow"]):
        assert "\x1b" not in holdfast(*command).stdout


@pytest.mark.parametrize("module", ["pydantic", "pydantic_ai", "uvicorn", "starlette", "openai"])
def test_client_commands_import_nothing_heavy(module):
    """`holdfast runs` in a loop, or on a small machine, must not load the server."""
    code = f"import sys, holdfast.cli, holdfast.client, holdfast.cli.screen\nsys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=10, check=False).returncode == 0


def test_version_and_module_form():
    """`python -m holdfast` is the same command."""
    result = subprocess.run(
        [sys.executable, "-m", "holdfast", "--version"], capture_output=True, text=True, timeout=10, check=True
    )
    assert result.stdout.startswith("holdfast, version ")

"""Commands that start a server: what they refuse before they start."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from holdfast.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No holdfast.toml and no setting from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOLDFAST_MODEL", "HOLDFAST_MODEL_URL"):
        monkeypatch.delenv(name, raising=False)


def test_serve_with_nothing_to_serve_names_the_ways_to_give_it():
    """P8: without a real model the server refuses; it never makes an answer up."""
    result = CliRunner().invoke(main, ["serve"])
    assert result.exit_code == 1
    for way in ("module:attr", "--model NAME --model-url URL", "--model provider:name", "holdfast demo"):
        assert way in result.stderr


@pytest.mark.parametrize("command", [["serve", "--model", "m"], ["demo"], ["rehearse"]], ids=" ".join)
def test_windows_is_refused_at_the_start(monkeypatch, command):
    """Better no server than one whose Stop cannot kill."""
    monkeypatch.setattr("platform.system", lambda: "Windows")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "Linux and macOS only" in result.stderr


def test_unknown_setting_is_refused_by_name(monkeypatch):
    """A typing mistake in a setting must not leave its default in force."""
    monkeypatch.setenv("HOLDFAST_STOP_GRAZE_S", "5")
    result = CliRunner().invoke(main, ["serve", "--model", "m"])
    assert result.exit_code == 2
    assert "HOLDFAST_STOP_GRAZE_S" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("command", ["probe"])
def test_commands_of_later_issues_do_not_exist(command):
    """P8: nothing is simulated; a command that does nothing yet is not there."""
    assert CliRunner().invoke(main, [command]).exit_code == 2

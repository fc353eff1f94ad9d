"""Prices: a table in holdfast.toml, JSON in the environment, and the same for a worker in another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.config import Settings
from holdfast.config.settings import Price, SettingsError, load

TABLE = '[prices."m-1"]\ninput = 1.25\noutput = 10\n'


def test_prices_are_a_table_or_json(tmp_path: Path) -> None:
    """Both ways say the same, and it survives the way to the worker."""
    (tmp_path / "holdfast.toml").write_text(TABLE)
    by_file = load({}, directory=tmp_path, environ={})
    by_env = load(
        {}, directory=tmp_path / "none", environ={"HOLDFAST_PRICES": '{"m-1": {"input": 1.25, "output": 10}}'}
    )
    assert by_file.prices == by_env.prices == {"m-1": Price(input=1.25, output=10)}
    assert Settings.model_validate(by_file.model_dump()) == by_file


@pytest.mark.parametrize(
    "value", ["{", '{"m": 1}', '{"m": {"input": -1, "output": 1}}', '{"m": {"in": 1, "output": 1}}']
)
def test_prices_that_are_none_are_refused_by_name(tmp_path: Path, value: str) -> None:
    """A price that was mistyped would be a budget that counts nothing."""
    with pytest.raises(SettingsError, match="HOLDFAST_PRICES"):
        load({}, directory=tmp_path, environ={"HOLDFAST_PRICES": value})

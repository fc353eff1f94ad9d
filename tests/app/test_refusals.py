"""What must not start does not start, and says what to do."""

from __future__ import annotations

import pytest

from holdfast.app.errors import StartError
from holdfast.app.runtime import Runtime
from holdfast.config import Settings

pytestmark = pytest.mark.timeout(60)  # each begins with the import of all that runs agents, and waits for stores


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": "0.0.0.0"}, "loopback"),
        ({"host": "192.168.1.7"}, "loopback"),
        ({"host": "example.org"}, "loopback"),
        ({"profile": "staging"}, "staging"),
        ({"profile": "production"}, "production"),
        ({}, "neither an agent nor a model"),
        ({"model": "x", "model_url": "no url"}, "http"),
        ({"model": "x", "store": "mongodb://127.0.0.1"}, "sqlite:///"),
        ({"model": "x", "store": "redis://127.0.0.1:1"}, "check that Redis runs"),
    ],
    ids=lambda value: str(value),
)
async def test_a_server_that_could_not_keep_its_promises_does_not_start(fields: dict, named: str, tmp_path) -> None:
    """P8 and P12: a clear refusal with a remedy, and nothing is left running."""
    settings = Settings(**{"port": 0, "store": f"sqlite:///{tmp_path}/x.db", **fields})
    with pytest.raises(StartError, match=named):
        async with Runtime(settings):
            pass

"""One Redis for all tests of a session that only need any, and a store of either kind."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.testing.rig import Rig
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness
from tests.stores.sqlite_harness import SqliteHarness


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "redis"])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    redis = request.param == "redis"
    server: RedisServer = request.getfixturevalue("redis_server") if redis else None
    harness: Any = RedisHarness(server) if redis else SqliteHarness(tmp_path)
    made = Rig(await harness.open(), advance=harness.advance)
    yield made
    await made.close()
    await harness.close()

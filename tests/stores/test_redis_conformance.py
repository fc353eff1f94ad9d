"""The conformance suite on Redis."""

from collections.abc import Iterator

import pytest

from holdfast.testing import StoreConformance, StoreHarness
from tests.stores.redis_harness import RedisHarness
from tests.stores.redis_server import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.close()


class TestRedis(StoreConformance):
    @pytest.fixture
    def harness(self, server: RedisServer) -> StoreHarness:
        return RedisHarness(server)

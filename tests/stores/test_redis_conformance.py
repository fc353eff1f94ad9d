"""The conformance suite on Redis."""

import pytest

from holdfast.testing import StoreConformance, StoreHarness
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness


class TestRedis(StoreConformance):
    @pytest.fixture
    def harness(self, redis_server: RedisServer) -> StoreHarness:
        return RedisHarness(redis_server)

"""A deployment of several processes on one Redis, and the figures that are said at the end."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.deployment import Cluster
from tests.redis_server import RedisServer
from tests.system.support import FULL

HERE = Path(__file__).parent
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
FAILED: pytest.StashKey[bool] = pytest.StashKey()


class Shared:
    """One deployment for the tests of this directory; whoever leaves it broken makes the next one start anew."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    def get(self, directory: Callable[[], Path]) -> Cluster:
        if self._cluster is None:
            where = directory()
            redis = RedisServer(where, *DURABLE)
            self._stack.callback(redis.close)
            redis.start()
            self._cluster = self._stack.enter_context(closing(Cluster(where, redis)))
        return self._cluster

    def close(self) -> None:
        self._cluster = None
        self._stack.close()


SHARED = Shared()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Two servers, two workers and a Redis; each test leaves everybody running."""
    return SHARED.get(lambda: tmp_path_factory.mktemp("cluster"))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """With the last test here, or after one that failed, everybody ends."""
    last = nextitem is None or HERE not in nextitem.path.parents
    if HERE in item.path.parents and (last or item.stash.get(FAILED, False)):
        SHARED.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and HERE in item.path.parents:
        item.stash[FAILED] = True
        cluster = getattr(item, "funcargs", {}).get("cluster")
        if cluster is not None:
            report.sections.append(("what the processes said", cluster.logs()))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At full size (HOLDFAST_FULL=1) these tests belong to `make chaos`; at CI's size to every `make test`."""
    for item in items:
        if FULL and HERE in item.path.parents:
            item.add_marker(pytest.mark.chaos)

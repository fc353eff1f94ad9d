"""A deployment of several processes on one Redis, and the figures that are said at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.deployment import Cluster
from tests.redis_server import RedisServer
from tests.system.support import FULL

HERE = Path(__file__).parent
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
FIGURES: pytest.StashKey[dict[str, list[str]]] = pytest.StashKey()
Deploy = Callable[..., Cluster]


def deploy_in(directory: Path, stack: ExitStack, *options: str, **more: Any) -> Cluster:
    redis = RedisServer(directory, *(options or DURABLE))
    stack.callback(redis.close)
    redis.start()
    return stack.enter_context(closing(Cluster(directory, redis, **more)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One deployment for all tests of a module; each leaves everybody running."""
    with ExitStack() as stack:
        yield deploy_in(tmp_path_factory.mktemp("cluster"), stack)


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str, list[str]], None]:
    """Print measured figures at the end, of tests that pass too."""
    said = request.config.stash.setdefault(FIGURES, {})
    return said.__setitem__


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for title, lines in terminalreporter.config.stash.get(FIGURES, {}).items():
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and HERE in item.path.parents:
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

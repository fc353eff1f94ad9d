"""The system under test, and what is said about it at the end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.system.support import FULL, System

DIVER = "agents_under_test:diver"
TICKER = "agents_under_test:ticker"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One server with the agents of `agents_under_test`, for all tests of a module."""
    with closing(System(tmp_path_factory.mktemp("system"), DIVER, TICKER)) as system:
        yield system


@pytest.fixture
def start_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., System]]:
    """Start a server of one's own, with its own arguments and environment."""
    with ExitStack() as stack:

        def start(*arguments: str, **env: str) -> System:
            env = {"HOLDFAST_SPARE": "false", **env}  # a third process that loads everything, for each server
            directory = tmp_path_factory.mktemp("system")
            system = stack.enter_context(closing(System(directory, *(arguments or (DIVER, TICKER)), env=env)))
            started.append(system)
            return system

        started: list[System] = []
        start.started = started  # for the log of a failure
        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        found = getattr(item, "funcargs", {})
        systems = [found[name] for name in ("system", "narrow") if name in found]
        for system in [*systems, *getattr(found.get("start_system"), "started", [])]:
            report.sections.append(("what the processes said", system.logs()))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At full size (HOLDFAST_FULL=1) these tests belong to `make chaos`; at CI's size to every `make test`."""
    here = Path(__file__).parent
    for item in items:
        if FULL and here in item.path.parents:
            item.add_marker(pytest.mark.chaos)

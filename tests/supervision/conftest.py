"""Servers of two processes, each with its own directory, and the figures that are said at the end."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.supervision.support import CREW
from tests.system.support import FULL, System

HERE = Path(__file__).parent
Serve = Callable[..., System]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server of one's own, with its own environment."""
    with ExitStack() as stack:

        def start(*arguments: str, **env: str) -> System:
            directory = tmp_path_factory.mktemp("supervised")
            for name in ("agents_supervised.py", "agents_isolated.py", "isolated_tools.py"):
                shutil.copy(HERE / name, directory)
            system = stack.enter_context(closing(System(directory, *(arguments or (CREW,)), env=env)))
            started.append(system)
            return system

        started: list[System] = []
        start.started = started  # for the log of a failure
        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and HERE in item.path.parents:
        for system in getattr(getattr(item, "funcargs", {}).get("serve"), "started", []):
            report.sections.append(("what the processes said", system.logs()))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """At full size (HOLDFAST_FULL=1) these tests belong to `make chaos`; at CI's size to every `make test`."""
    for item in items:
        if FULL and HERE in item.path.parents:
            item.add_marker(pytest.mark.chaos)

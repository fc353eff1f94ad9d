"""Servers as `holdfast serve` starts them: a gateway and a supervised worker process."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.support import BLOCKING
from tests.system.support import System

HERE = Path(__file__).parent
FIGURES: pytest.StashKey[list[str]] = pytest.StashKey()
Serve = Callable[..., System]


class _Started(System):
    """A system that has the agent of this directory, too."""

    def __init__(self, directory: Path, *arguments: str, env: dict[str, str]) -> None:
        shutil.copy(HERE / "agents_blocking.py", directory)
        super().__init__(directory, *arguments, env=env)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One server for the scenarios that leave it as they found it."""
    with closing(
        _Started(tmp_path_factory.mktemp("scenario"), BLOCKING, env={"HOLDFAST_SYNTHETIC_RUN_S": "0"})
    ) as system:
        yield system


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server of one's own, with its own arguments and environment."""
    with ExitStack() as stack:

        def start(*arguments: str, **env: str) -> System:
            directory = tmp_path_factory.mktemp("scenario")
            made = stack.enter_context(closing(_Started(directory, *(arguments or (BLOCKING,)), env=env)))
            started.append(made)
            return made

        started: list[System] = []
        start.started = started  # for the log of a failure
        yield start


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Print a measured figure at the end, of tests that pass too."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if found := terminalreporter.config.stash.get(FIGURES, []):
        terminalreporter.section("document 4: B's wait")
        for line in found:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and HERE in item.path.parents:
        found = getattr(item, "funcargs", {})
        systems = [found["system"]] if "system" in found else []
        for system in [*systems, *getattr(found.get("serve"), "started", [])]:
            report.sections.append(("what the processes said", system.logs()))
    return report

"""A server whose runs are watched closely: notices come soon."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.system.support import System

HERE = Path(__file__).parent
AGENTS = [f"agents_watched:{name}" for name in ("watched", "quitter", "hooked", "stubborn")]
SOON = {
    "HOLDFAST_SPARE": "false",
    "HOLDFAST_STALLED_NOTICE_S": "0.5",
    "HOLDFAST_MODEL_IDLE_S": "3",
    "HOLDFAST_RENEW_S": "0.5",
}


def server(directory: Path, **env: str) -> System:
    shutil.copy(HERE / "agents_watched.py", directory)
    return System(directory, *AGENTS, env={**SOON, **env})


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One server for all tests here; its worker is a process of its own."""
    with closing(server(tmp_path_factory.mktemp("watched"))) as started:
        yield started


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The same with the worker on a thread of the server."""
    with closing(server(tmp_path_factory.mktemp("embedded"), HOLDFAST_IN_PROCESS="true")) as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed and HERE in item.path.parents:
        for name in ("system", "embedded"):
            found = getattr(item, "funcargs", {}).get(name)
            if found is not None:
                report.sections.append(("what the processes said", found.logs()))
    return report

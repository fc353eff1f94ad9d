"""One server whose tools answer, ask, fail and wait, for the clients of every protocol."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.deploy.nginx import Nginx
from tests.streams.node import node_program
from tests.system.support import System, full

AGENTS = Path(__file__).resolve().parents[1] / "system"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    node_program()
    directory = tmp_path_factory.mktemp("streams")
    for name in ("agents_asking.py", "agents_tools.py"):
        if (AGENTS / name).exists():
            shutil.copy(AGENTS / name, directory)
    env = {"HOLDFAST_SPARE": "false", "HOLDFAST_DISCONNECT_GRACE_S": "3"}
    with closing(System(directory, "agents_asking:asker", "agents_asking:plain", env=env)) as made:
        yield made


@pytest.fixture(scope="session")
def nginx(site: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx as it buffers by default: that our streams go through is our doing, not its configuration's."""
    directory = tmp_path_factory.mktemp("nginx")
    with closing(Nginx(directory, [site.http.port] * 2, leave_out="proxy_buffering")) as made:
        yield made


@pytest.fixture(params=full(["direct", "nginx"], ["direct"]))
def url(site: System, request: pytest.FixtureRequest) -> str:
    """Where clients go: to the server itself, at full size through nginx as well."""
    if request.param == "nginx":
        return f"http://127.0.0.1:{request.getfixturevalue('nginx').http.port}"
    return f"http://127.0.0.1:{site.http.port}"

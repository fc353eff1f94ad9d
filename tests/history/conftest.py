"""One server for all tests of the history: each has sessions of its own."""

from collections.abc import Iterator

import pytest

from tests.history.site import Site


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    file = tmp_path_factory.mktemp("history") / "h.db"
    with Site(f"sqlite:///{file}", specs=("tests.history.agent:agent",)) as made:
        yield made

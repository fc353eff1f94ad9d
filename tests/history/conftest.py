"""One server for all tests of the history: each has sessions of its own."""

from collections.abc import Iterator

import pytest

from tests.history.site import Site


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    with Site(specs=("tests.history.agent:agent",)) as made:
        yield made

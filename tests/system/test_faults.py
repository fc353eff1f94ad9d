"""docs/faults.md is true: every fault of a model against every limit, on real processes."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.faults import PAGE, TABLE, Site, measure, said, table


@pytest.mark.slow
@pytest.mark.timeout(150)
async def test_every_fault_ends_as_the_page_says_under_every_limit(
    tmp_path: Path, figures: Callable[[str, list[str]], None]
) -> None:
    """No fault hangs a run, leaves its upstream open or breaks the session's next prompt; the page says so exactly."""
    with closing(Site(tmp_path)) as site:
        try:
            cases = await measure(site)
        except BaseException as error:
            error.add_note(site.logs())
            raise
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    measured = table(cases).splitlines()
    assert found[0].splitlines()[1:-1] == measured, "if this is meant: make faults"
    assert [case.tag for case in cases if case.works != "yes"] == []
    assert all(cell.strip() for line in measured for cell in line.strip("|").split("|"))
    figures("faults against limits", said(cases))

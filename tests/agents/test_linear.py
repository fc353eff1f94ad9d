"""What a model writes piece by piece costs by the piece, not by the square of the pieces."""

import pytest

from tests.agents.chunked import ratio


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_two_thousand_chunks_of_arguments_cost_twice_as_much_as_one_thousand() -> None:
    """F59: an agent that parsed all it had at each chunk stood still over a large file. CPU time, best of several."""
    once, twice, times = await ratio(1000, 12, enough=2.3)
    assert times < 2.3, f"{once:.3f} s of CPU for 1,000 chunks, {twice:.3f} s for 2,000: a square is 4"

"""What a tool's arguments cost while a model writes them in chunks, from the model's event to the store's door."""

import asyncio
from typing import Any

from tests.agents.chunked import ratio


def grown(_: Any, rounds: int) -> tuple[str, list[list[str]]]:
    """Linear is 2.0; the old way, which parsed anew for each chunk, is 4.0."""
    rows = [["chunks", "CPU", "twice as many", "ratio"]]
    for chunks in (1000, 10_000):
        once, twice, times = asyncio.run(ratio(chunks, rounds))
        rows.append([str(chunks), f"{once * 1e3:.0f} ms", f"{twice * 1e3:.0f} ms", f"{times:.2f}"])
    return f"a tool's arguments in chunks, best of {rounds}", rows

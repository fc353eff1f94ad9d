"""What Holdfast costs, measured on real processes: `python -m bench [part ...] [--rounds N]`.

Each part compares, within one run and interleaved, with doing without Holdfast; figures of two runs on a machine that
others use are not comparable, their ratios nearly are. Nothing here fails on a time. What does fail: a token that was
delivered and is not in the log, or the other way round, because a writer that lags behind looks free.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench import arguments, cluster, cost, latency, redis, supervised
from tests.system.support import System

Part = Callable[[System, int], tuple[str, list[list[str]]]]

PARTS: dict[str, tuple[Part, int]] = {
    "start": (latency.start, 5),
    "ttft": (latency.first_token, 100),
    "stop": (latency.stop, 30),
    "crowd": (latency.crowd, 10),
    "idle": (cost.idle, 30),
    "cpu": (cost.paced, 10),
    "speed": (cost.full_speed, 5),
    "processes": (supervised.compared, 5),
    "arguments": (arguments.grown, 5),
    "cluster": (cluster.times, 5),
    "cluster-cpu": (cluster.cpu, 2),
    "redis": (redis.operations, 3),
    "redis-memory": (redis.memory, 1),
    "redis-herd": (redis.herd, 2),
    "redis-idle": (redis.idle, 1),
    "redis-tokens": (redis.tokens, 2),
}


def main() -> None:
    """Run the parts and print a table for each."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, help="instead of each part's own number")
    asked = parser.parse_args()
    unknown = set(asked.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    agents = ("agents_under_test:diver", "agents_under_test:ticker")
    with tempfile.TemporaryDirectory() as directory, closing(System(Path(directory), *agents)) as system:
        for name in asked.parts or PARTS:
            part, rounds = PARTS[name]
            show(*part(system, asked.rounds or rounds))


def show(title: str, rows: list[list[str]]) -> None:
    """One table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for first, *cells in rows:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([f"  {first.ljust(widths[0])}", *aligned]))


if __name__ == "__main__":
    main()

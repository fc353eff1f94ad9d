"""What the second process costs: the default against `--in-process`, in turns, on the same machine at the same time."""

import time
from contextlib import closing
from pathlib import Path
from statistics import median

from bench import cost, latency
from tests.system.support import System, percentile

RATE = 20
SECONDS = 3
AT_ONCE = 20


def compared(system: System, rounds: int) -> tuple[str, list[list[str]]]:
    """Time to the first token, and CPU for each token of twenty runs, of both variants in turns."""
    directory = Path(system.directory) / "in-process"
    directory.mkdir(exist_ok=True)
    variants: dict[str, System] = {"gateway and worker": system}
    first: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    with closing(System(directory, *system.arguments, env={"HOLDFAST_IN_PROCESS": "true"})) as alone:
        variants["--in-process"] = alone
        for i in range(rounds + 1):
            for name, each in variants.items():
                times = [latency._native(each, "!tokens n=1 rate=1000") * 1000 for _ in range(10)]
                used = _cpu_us(each)
                if i:  # the first round opens connections and fills caches
                    first.setdefault(name, []).extend(times)
                    cpu.setdefault(name, []).append(used)
    rows = [["", "first token p50", "p99", "ratio", "CPU per token", "ratio"]]
    for name in variants:
        against = [median(first["--in-process"]), median(cpu["--in-process"])]
        ours = [median(first[name]), median(cpu[name])]
        rows.append(
            [
                name,
                f"{ours[0]:.1f} ms",
                f"{percentile(first[name], 0.99):.1f} ms",
                f"{ours[0] / against[0]:.2f}",
                f"{ours[1]:.0f} us",
                f"{ours[1] / against[1]:.2f}",
            ]
        )
    return f"the second process, {rounds} rounds in turns; CPU at {AT_ONCE} runs of {RATE} tokens/s", rows


def _cpu_us(system: System) -> float:
    n = SECONDS * RATE
    before = cost._cpu_s(system)
    cost._carry(system, f"!tokens n={n} rate={RATE}", AT_ONCE, n)
    time.sleep(0.5)  # whatever lags behind is paid for
    return (cost._cpu_s(system) - before) / (AT_ONCE * n) * 1e6

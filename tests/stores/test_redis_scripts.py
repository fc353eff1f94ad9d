"""Rules of the scripts that a reader would have to remember."""

import re

import pytest

from holdfast.domain.runs import TABLE, Move
from holdfast.stores.redis.scripts import CLOCK, lifecycle, scripts

# What must go through at Redis' memory limit: it ends work, keeps it from being lost, or frees memory.
AT_THE_LIMIT = {
    "bury",
    "delete_session",
    "disown",
    "finish",
    "forget",
    "listen",
    "reap",
    "release",
    "renew",
    "settle",
    "stop",
    "sweep_bury",
    "sweep_delete",
    "sweep_mark",
}


def test_only_what_ends_or_frees_goes_through_at_the_memory_limit() -> None:
    """The others are refused whole, before their first command: no half of an operation is ever there."""
    flags = {name: script.source.split(b"\n", 1)[0].decode() for name, script in scripts().items()}
    assert {flag.split(" ")[0] for flag in flags.values()} == {"#!lua"}
    assert {name for name, flag in flags.items() if "allow-oom" in flag} == AT_THE_LIMIT
    assert all(flag in ("#!lua", "#!lua flags=allow-oom", "#!lua flags=no-writes") for flag in flags.values())


@pytest.mark.parametrize("name", sorted(scripts()))
def test_a_script_asks_redis_for_the_time(name: str) -> None:
    """One clock for all processes; tests replace this one line."""
    assert scripts()[name].source.count(CLOCK.encode()) == 1


def test_the_lifecycle_in_lua_is_the_table() -> None:
    """Every pair of phase and trigger, written from the one table there is."""
    lines = [line for line in lifecycle().split("\n") if re.match(r"[a-z]+\.[a-z_]+=", line)]
    assert len(lines) == sum(map(len, TABLE.values()))
    for phase, triggers in TABLE.items():
        for trigger, move in triggers.items():
            expected = f"{phase}.{trigger}=" + (f">{move.to}" if isinstance(move, Move) else "")
            assert any(line.startswith(expected) for line in lines), expected


def test_the_same_text_has_the_same_hash_in_every_process() -> None:
    """EVALSHA of one process finds what another loaded, and a rolling deploy has both."""
    again = scripts.__wrapped__()
    assert {name: script.sha for name, script in again.items()} == {
        name: script.sha for name, script in scripts().items()
    }

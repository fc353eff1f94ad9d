"""Start-up facts: a Redis that would lose runs is refused, or said to be one, with what to do about it."""

import re
import socket
from pathlib import Path

import pytest

from holdfast.stores.opening import StoreError, open_store, shown
from holdfast.stores.redis.facts import complaint, durability, judge
from tests.redis_server import RedisServer
from tests.stores.redis_harness import RedisHarness

GOOD = {
    "redis_version": "7.0.15",
    "cluster_enabled": "0",
    "role": "master",
    "maxmemory_policy": "noeviction",
    "aof_enabled": "1",
    "used_memory": "1000000",
    "maxmemory": "0",
}


def _bad(**changed: str) -> list[str]:
    return [fact.name for fact in judge(GOOD | changed, "everysec", 0.0) if not fact.ok]


def test_the_page_lists_every_fact() -> None:
    """docs/redis.md says which of them are required."""
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    listed = re.findall(r"^\| ([a-z-]+) \| (yes|no) \|", page, re.MULTILINE)
    facts = judge(GOOD, "everysec", 0.0)
    assert listed == [(fact.name, "yes" if fact.required else "no") for fact in facts]


def test_a_good_redis_has_every_fact() -> None:
    """Nothing is complained of without a reason."""
    assert _bad() == []
    assert _bad(redis_version="7.2.4", valkey_version="8.0.1") == []
    assert _bad(redis_version="8.2.1") == []


@pytest.mark.parametrize(
    ("changed", "named", "required"),
    [
        ({"redis_version": "6.2.14"}, "version", True),
        ({"cluster_enabled": "1"}, "cluster", True),
        ({"role": "slave"}, "role", True),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy", True),
        ({"aof_enabled": "0"}, "appendonly", False),
        ({"aof_last_write_status": "err"}, "saving", False),
        ({"maxmemory": "1000001"}, "memory", False),
    ],
    ids=lambda value: str(value),
)
def test_each_fact_that_fails_says_why_and_what_to_do(changed: dict[str, str], named: str, required: bool) -> None:
    """P8: a failure has a cause and a remedy."""
    (fact,) = [fact for fact in judge(GOOD | changed, "", 0.0) if not fact.ok]
    assert (fact.name, fact.required) == (named, required)
    assert fact.why
    assert fact.remedy
    assert complaint(fact) == f"{fact.why}; {fact.remedy}"


@pytest.mark.parametrize("skew_s", [-6.0, 6.0])
def test_a_clock_that_differs_is_said(skew_s: float) -> None:
    """Times of events come from workers, times of records from Redis."""
    (fact,) = [fact for fact in judge(GOOD, "", skew_s) if not fact.ok]
    assert (fact.name, fact.required) == ("clock", False)


def test_durability_is_what_the_mode_gives() -> None:
    """Promised is what Redis documents, no more."""
    always = durability(judge(GOOD, "always", 0.0))
    everysec = durability(judge(GOOD, "everysec", 0.0))
    none = durability(judge(GOOD | {"aof_enabled": "0"}, "everysec", 0.0))
    assert "takes nothing" in always
    assert "last second" in everysec
    assert none.startswith("none")


async def test_what_is_not_required_is_said_at_the_start(redis_server: RedisServer) -> None:
    """Debian's Redis has appendonly no: whoever starts a server on it reads what that means."""
    harness = RedisHarness(redis_server)
    said: dict[str, str] = {}
    store = await open_store(harness.url, say=lambda event, **facts: said.update(facts))
    await store.close()
    await harness.close()
    assert said["fact"] == "appendonly"
    assert "CONFIG SET appendonly yes" in said["remedy"]


async def test_a_redis_that_evicts_is_refused(redis_server: RedisServer) -> None:
    """At its limit it would delete runs that somebody waits for."""
    harness = RedisHarness(redis_server)
    harness.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreError, match="CONFIG SET maxmemory-policy noeviction"):
            await open_store(harness.url)
    finally:
        harness.client.config_set("maxmemory-policy", "noeviction")
        await harness.close()


async def test_keys_of_another_version_are_refused(redis_server: RedisServer) -> None:
    """Scripts that take them for their own would do damage."""
    harness = RedisHarness(redis_server)
    harness.client.hset(f"{harness.prefix}meta", "layout", 99)
    with pytest.raises(StoreError, match="layout 99"):
        await open_store(harness.url)
    await harness.close()


async def test_an_address_where_nothing_answers_is_named_without_its_password() -> None:
    """The text goes to terminals and logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError) as refused:
        await open_store(f"redis://user:geheim@127.0.0.1:{port}/0")
    assert f"redis://user:***@127.0.0.1:{port}/0" in str(refused.value)
    assert "check that Redis runs" in str(refused.value)
    assert "geheim" not in str(refused.value)


async def test_a_wrong_password_says_so(redis_server: RedisServer) -> None:
    """And not that Redis is down."""
    with pytest.raises(StoreError, match="user and password"):
        await open_store(redis_server.url.replace("redis://", "redis://nobody:wrong@"))


@pytest.mark.parametrize("url", ["redis://h/0?namespace=a%20b", "redis://h/0?socket_timeout=x", "mongodb://h"])
async def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    """With the forms that are understood."""
    with pytest.raises(StoreError, match=r"A-Za-z0-9|redis://host:port/db"):
        await open_store(url)


def test_passwords_are_not_shown() -> None:
    """In what serve prints."""
    assert shown("redis://:secret@h:6379/0") == "redis://:***@h:6379/0"
    assert shown("redis://h:6379/0") == "redis://h:6379/0"
    assert shown("sqlite:///a:b@c.db") == "sqlite:///a:b@c.db"

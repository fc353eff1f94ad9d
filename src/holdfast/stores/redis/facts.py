"""What a Redis must be so that runs are safe in it: each fact with why it is not so, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

VERSION_MIN: Final = (7, 0)
SKEW_S_MAX: Final = 5.0
_MEMORY_PART_MAX: Final = 0.9


class Fact(NamedTuple):
    """One requirement. Where `required`, no store is opened without it."""

    name: str
    ok: bool
    value: str
    why: str = ""
    remedy: str = ""
    required: bool = False


async def look(conn: AbstractConnection) -> tuple[list[Fact], float]:
    """Ask a connected Redis for every fact, and by how many seconds its clock is before ours.

    Raises:
        RedisError, OSError: It did not answer.
    """
    asked = time.time()
    seconds, micros = await _ask(conn, "TIME")
    answered = time.time()
    skew_s = int(seconds) + int(micros) / 1e6 - (asked + answered) / 2
    info = _info(await _ask(conn, "INFO", "everything"))
    return judge(info, await _appendfsync(conn), skew_s), skew_s


def judge(info: Mapping[str, str], appendfsync: str, skew_s: float) -> list[Fact]:
    """What these answers amount to. `appendfsync` is empty where Redis does not tell it."""
    policy = info.get("maxmemory_policy", "")
    aof = info.get("aof_enabled") == "1"
    return [
        _version(info),
        Fact(
            "cluster",
            info.get("cluster_enabled", "0") == "0",
            "off" if info.get("cluster_enabled", "0") == "0" else "on",
            "it runs in cluster mode, where one step cannot be spread over slots",
            "use a standalone Redis, or one behind Sentinel",
            required=True,
        ),
        Fact(
            "role",
            info.get("role", "master") == "master",
            info.get("role", ""),
            "it is a replica and takes no writes",
            "name its master in --store",
            required=True,
        ),
        Fact(
            "maxmemory-policy",
            policy in ("", "noeviction"),
            policy,
            f"maxmemory-policy is {policy}: at its limit Redis would delete runs instead of refusing new ones",
            "CONFIG SET maxmemory-policy noeviction, and set it in redis.conf",
            required=True,
        ),
        Fact(
            "appendonly",
            aof,
            f"yes, appendfsync {appendfsync or 'unknown'}" if aof else "no",
            "appendonly is no: what was not in the last snapshot is lost when Redis ends, a restart included",
            "CONFIG SET appendonly yes, and set it in redis.conf",
        ),
        Fact(
            "saving",
            info.get("aof_last_write_status", "ok") == "ok" and info.get("rdb_last_bgsave_status", "ok") == "ok",
            info.get("aof_last_write_status", "ok"),
            "Redis cannot write its files",
            "free space on its disk; its log says more",
        ),
        _memory(info),
        Fact(
            "clock",
            abs(skew_s) <= SKEW_S_MAX,
            f"{skew_s:+.1f} s",
            f"the clock of Redis is {skew_s:+.1f} s from this machine's: times of events and records disagree",
            "run NTP on both machines",
        ),
    ]


def durability(facts: list[Fact]) -> str:
    """What is lost when, in one line."""
    value = next(fact.value for fact in facts if fact.name == "appendonly")
    if "always" in value:
        return "fsync at every write: power loss takes nothing that was acknowledged"
    if value.startswith("yes"):
        return f"{value.removeprefix('yes, ')}: power loss may take the last second or more, the death of Redis nothing"
    return "none: appendonly is no, and what is newer than the last snapshot is lost when Redis ends"


def complaint(fact: Fact) -> str:
    """Why it is not so, and what to do."""
    return f"{fact.why}; {fact.remedy}"


def _version(info: Mapping[str, str]) -> Fact:
    text = info.get("redis_version", "0")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    valkey = info.get("valkey_version")
    return Fact(
        "version",
        numbers >= VERSION_MIN,
        f"Valkey {valkey}" if valkey else f"Redis {text}",
        f"it is version {text}, and scripts with flags need 7.0",
        "upgrade to Redis 7.0 or newer, or to Valkey",
        required=True,
    )


def _memory(info: Mapping[str, str]) -> Fact:
    used, most = int(info.get("used_memory", "0")), int(info.get("maxmemory", "0"))
    return Fact(
        "memory",
        most == 0 or used < most * _MEMORY_PART_MAX,
        f"{used} of {most or 'unlimited'} bytes",
        f"{used} of {most} bytes are used: at the limit new runs and events are refused, stops and ends go through",
        "raise maxmemory, or lower retention_s or retention_bytes",
    )


async def _ask(conn: AbstractConnection, *words: str) -> Any:
    await conn.send_command(*words)
    return await conn.read_response()


async def _appendfsync(conn: AbstractConnection) -> str:
    try:
        reply = await _ask(conn, "CONFIG", "GET", "appendfsync")
    except ResponseError:  # hosted ones forbid CONFIG
        return ""
    return reply[1].decode() if len(reply) > 1 else ""


def _info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value.strip() for name, _, value in lines}

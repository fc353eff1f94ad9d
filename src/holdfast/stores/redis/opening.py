"""Opening a store on Redis: connect, look at the facts, subscribe. What cannot be used is refused with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from redis.exceptions import RedisError

from holdfast.domain.errors import StoreUnavailable
from holdfast.stores.errors import StoreError
from holdfast.stores.redis.address import Address
from holdfast.stores.redis.facts import Fact, complaint, look
from holdfast.stores.redis.faults import remedy_of
from holdfast.stores.redis.link import Link
from holdfast.stores.redis.scripts import Script
from holdfast.stores.redis.subscriber import Subscriber
from holdfast.stores.wakes import Hub

LAYOUT: Final = 1
Looked = tuple[list[Fact], float]


async def connect(
    where: Address, say: Callable[..., None], library: Mapping[str, Script]
) -> tuple[Link, Subscriber, Looked]:
    """Connections that work, and what was found.

    Raises:
        StoreError: It cannot be used; says why and what to do. Nothing is left open.
    """
    link = Link(where, library)
    subscriber = Subscriber(where, Hub(), say)
    try:
        async with link.connected() as conn:
            looked = await look(conn)
        _refuse(where, looked[0])
        await _same_layout(link)
        await subscriber.start()
    except (RedisError, OSError) as error:
        await link.close()
        remedy = remedy_of(error) or "check the address"
        raise StoreError(f"cannot open {where.shown}: {type(error).__name__}: {error}; {remedy}") from error
    except StoreUnavailable as error:
        await link.close()
        raise StoreError(f"cannot open {where.shown}: {error.detail}; {error.remedy}") from error
    except BaseException:
        await link.close()
        raise
    for fact in looked[0]:
        if not fact.ok:
            say("store_fact", fact=fact.name, why=fact.why, remedy=fact.remedy)
    return link, subscriber, looked


def _refuse(where: Address, facts: list[Fact]) -> None:
    missing = [complaint(fact) for fact in facts if fact.required and not fact.ok]
    if missing:
        raise StoreError(f"cannot open {where.shown}: {'. And '.join(missing)}")


async def _same_layout(link: Link) -> None:
    """Refuse keys of another version of Holdfast; mark those of this one, unless Redis is full."""
    try:
        found = await link.command("HGET", f"{link.address.prefix}meta", "layout")
        if found is None:
            await link.command("HSETNX", f"{link.address.prefix}meta", "layout", LAYOUT)
    except StoreUnavailable as error:
        if not error.full:
            raise
        return
    if found is not None and int(found) != LAYOUT:
        raise StoreError(
            f"cannot open {link.address.shown}: its keys have layout {int(found)}, this version of Holdfast has "
            f"{LAYOUT}; {'upgrade Holdfast' if int(found) > LAYOUT else 'use the earlier version'}, or use another "
            "namespace (?namespace=name)"
        )

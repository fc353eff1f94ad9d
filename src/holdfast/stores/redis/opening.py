"""Opening a store on Redis: connect, look at the facts, subscribe. What cannot be used is refused with its remedy.

Layout 1 of the keys is the first, so that there is nothing to bring forward yet. What a later version needs of this one
is in place: every script refuses keys of another layout (base.lua), with which no process of this version, however long
it has had them open, reads or writes a key once `layout` is another word. A version with layout 2 moves them so:

1. Where workers of layout 1 have reported (`workers`), it refuses to open: drain and end them first.
2. One step of Redis sets `layout` from `1` to `1>2`. From then on every process of version 1 is fenced, those too that
   no report tells of. Whoever finds `1>2` goes on with the move; two at once do no harm if each step is
   one script that looks whether its key has been moved, which is what makes it repeatable after a kill, too.
3. The last step sets `2`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from redis.exceptions import RedisError

from holdfast.domain.errors import StoreUnavailable
from holdfast.stores.errors import StoreError
from holdfast.stores.redis.address import Address
from holdfast.stores.redis.facts import Fact, complaint, look
from holdfast.stores.redis.faults import remedy_of
from holdfast.stores.redis.link import Link
from holdfast.stores.redis.scripts import LAYOUT, Script
from holdfast.stores.redis.subscriber import Subscriber
from holdfast.stores.wakes import Hub

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
    if found is not None and found != str(LAYOUT).encode():
        raise StoreError(
            f"cannot open {link.address.shown}: its keys have layout {found.decode(errors='replace')}, this version of "
            f"Holdfast has {LAYOUT}; upgrade Holdfast, or use another namespace (?namespace=name)"
        )

"""What the other process of a test does: `python -m tests.stores.process <verb> <url> ...`, one line per fact."""

import asyncio
import sys

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy
from holdfast.ports.store import Status
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing.build import new_run, text
from holdfast.testing.rig import Holder, Rig


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def write(store: SqliteStore, runs: int) -> None:
    """Append to `runs` runs at once, for ever; say each head that the store acknowledged."""
    rig = Rig(store, advance=no_advance)
    holders = [await rig.running(f"s{n}") for n in range(runs)]

    async def forever(holder: Holder) -> None:
        n = 0
        while True:
            drafts = [text(0, f"{n + i}") for i in range(1 + n % 3)]
            n += len(drafts)
            answer = await holder.append(*drafts)
            if answer.status is not Status.OK:
                raise RuntimeError(f"append answered {answer}")
            say(holder.key.run, answer.head)

    await asyncio.gather(*(forever(h) for h in holders))


async def tail(store: SqliteStore, run: str, after: int) -> None:
    """Say the first and last seq of each page until the run has ended."""
    say("tailing")
    async for page in store.tail(RunKey("local", run), after):
        if page.events:
            say(page.first, page.first + len(page.events) - 1)
    say("ended")


async def create(store: SqliteStore, many: int, policy: str) -> None:
    """Create `many` runs of one session at once; say what the store answered."""
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    news = [new_run("shared", policy=Policy(policy)) for _ in range(many)]
    for created in await asyncio.gather(*(store.create(new) for new in news)):
        say(created.status)


async def no_advance(ms: int) -> None:
    raise AssertionError(f"real time does not move by {ms} ms because a test wants it")


async def main(verb: str, url: str, *rest: str) -> None:
    store = await SqliteStore.open(url)
    try:
        match verb:
            case "write":
                await write(store, int(rest[0]))
            case "tail":
                await tail(store, rest[0], int(rest[1]))
            case "create":
                await create(store, int(rest[0]), rest[1])
            case _:
                raise SystemExit(f"no verb {verb!r}")
    finally:
        await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

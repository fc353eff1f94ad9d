"""What a run waits on is known to its worker only: asked and answered through a store that many processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from holdfast.aio import Owner
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.engine.sessions import Inspector
from holdfast.stores.opening import OpenStore, Questions
from holdfast.telemetry import Log

_ASK_S: Final = 1.0  # its supervisor waits half a second for a worker that does not answer
_POLL_S: Final = 5.0  # a wake may be lost
_AT_ONCE: Final = 16


class Named(Inspector, Protocol):
    """Who has workers, and their names."""

    def names(self) -> Sequence[str]:
        """Of those that hold runs here."""
        ...


class AskElsewhere:
    """Asks the workers of this process, then the one that the store says has the run."""

    def __init__(self, store: OpenStore, here: Inspector, log: Log) -> None:
        """`here` is asked first."""
        self._store = store
        self._here = here
        self._log = log

    async def inspect(self, key: RunKey) -> dict[str, Any] | None:
        """What a held run waits on; None where no worker says it in about a second."""
        found = await self._here.inspect(key)
        questions = self._store.questions
        if found is not None or questions is None:
            return found
        record = await self._store.get(key)
        if record is None or not record.worker:
            return None
        asked = msgspec.json.encode([key.tenant, key.run])
        try:
            answer = await questions.ask(record.worker, asked, _ASK_S)
        except StoreUnavailable as error:
            self._log.write("store_unavailable", part="inspect", error=error.detail)
            return None
        told: dict[str, Any] | None = None if answer is None else msgspec.json.decode(answer)
        return told


async def answer_questions(questions: Questions, workers: Sequence[Named], log: Log) -> None:
    """Answer what others ask of workers that are here; for ever."""
    owner = Owner(lambda name, error: log.write("task_failed", task=name, error=repr(error)))
    try:
        with questions.subscribe() as wake:
            while True:
                _ = await wake.wait(_POLL_S)
                by_name = {name: each for each in workers for name in each.names()}
                try:
                    asked = await questions.take(list(by_name)) if by_name else []
                except StoreUnavailable as error:
                    log.write("store_unavailable", part="questions", error=error.detail)
                    continue
                except Exception as error:  # noqa: BLE001 - said, and asked again at the next wake
                    log.write("loop_failed", part="questions", error=repr(error))
                    continue
                for question in asked:
                    if len(owner) < _AT_ONCE:
                        _ = owner.spawn(_answer(questions, question, by_name[question.worker]), "answer")
    finally:
        await owner.close(1.0)


async def _answer(questions: Questions, question: Any, inspector: Inspector) -> None:
    tenant, run = msgspec.json.decode(question.text, type=tuple[str, str])
    found = await inspector.inspect(RunKey(tenant, run))
    await questions.answer(question, msgspec.json.encode(found, enc_hook=str))

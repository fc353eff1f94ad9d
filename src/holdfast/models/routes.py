"""The ways to ask for an answer, in order: the model itself, then what the deployment has set as its fallbacks.

    the model            streamed, with its retries
    model_fallback_nonstreaming      the same model in one piece: where its streams break and its answers do not
    model_fallback       another model, streamed, with its own limits and retries

Each way has its own breaker. A fallback is only taken before the first content, and never silently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic_ai.models import Model

from holdfast.config.settings import Settings
from holdfast.models.breaker import Breaker, Breakers, upstream_of


class ModelLimits(NamedTuple):
    """The limits on one model request, in seconds, and how often it is repeated or begun anew."""

    first_content_s: float
    idle_s: float
    request_s: float
    retries: int
    restarts: int = 0

    @classmethod
    def of(cls, settings: Settings) -> ModelLimits:
        """Those of the deployment."""
        return cls(
            settings.model_first_content_s,
            settings.model_idle_s,
            settings.model_request_s,
            settings.model_retries,
            settings.model_restarts,
        )


@dataclass(frozen=True)
class Route:
    """One way to ask.

    Attributes:
        model: Who is asked.
        breaker: Of the upstream, asked in this way.
        limits: For each request.
        whole: Whether the answer is asked for in one piece. Nothing of it can be seen before its end, so that the
            limit on all of it is the only one.
        falls_to: How degraded announces it; "" for the model itself.
    """

    model: Model
    breaker: Breaker
    limits: ModelLimits
    whole: bool = False
    falls_to: str = ""


class ModelGuard:
    """What the guarded models of a process share: limits, breakers, fallbacks."""

    def __init__(
        self,
        limits: ModelLimits,
        breakers: Breakers | None = None,
        *,
        fallback: Model | None = None,
        nonstreaming: bool = False,
    ) -> None:
        """Hold them.

        Args:
            limits: On each request, whichever way it is asked.
            breakers: Of the upstreams; with the default limits where none are given.
            fallback: Asked where the model fails.
            nonstreaming: Whether the model is asked again without streaming where its streams fail.
        """
        self.limits = limits
        self.breakers = breakers if breakers is not None else _breakers(Settings.model_validate({}))
        self.fallback = fallback
        self.nonstreaming = nonstreaming

    @classmethod
    def of(cls, settings: Settings, fallback: Model | None = None) -> ModelGuard:
        """That of the deployment."""
        return cls(
            ModelLimits.of(settings),
            _breakers(settings),
            fallback=fallback,
            nonstreaming=settings.model_fallback_nonstreaming,
        )

    def routes(self, model: Model, limits: ModelLimits) -> list[Route]:
        """The ways to an answer of `model`, in order."""
        upstream = upstream_of(model)
        found = [Route(model, self.breakers.of(upstream), limits)]
        if self.nonstreaming:
            breaker = self.breakers.of(f"{upstream} not streamed")
            whole = limits._replace(first_content_s=limits.request_s, retries=0)
            found.append(Route(model, breaker, whole, whole=True, falls_to=f"{model.model_name} without streaming"))
        other = self.fallback
        if other is not None:
            breaker = self.breakers.of(upstream_of(other))
            found.append(Route(other, breaker, limits, falls_to=other.model_name))
        return found

    def facts(self) -> dict[str, Any]:
        """For /api/workers."""
        return {"breakers": self.breakers.facts()}


def _breakers(settings: Settings) -> Breakers:
    return Breakers(settings.breaker_failures, settings.breaker_open_s)

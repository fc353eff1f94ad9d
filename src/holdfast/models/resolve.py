"""From the words on the command line to a model, over one connection pool per process.

`--model NAME --model-url URL` is an OpenAI-compatible server; `--model ollama:NAME` is Ollama at OLLAMA_BASE_URL;
`--model provider:name` is pydantic-ai's own naming, with that provider's own client.

One client, because a provider object per run leaves idle sockets behind until the garbage collector finds them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import httpx2
from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai import OpenAIProvider

from holdfast.config import Settings, model_key, ollama_url
from holdfast.models.chunks import openai_client
from holdfast.models.transport import ProbedTransport

_KEEPALIVE: Final = httpx2.Limits(max_connections=1024, max_keepalive_connections=64, keepalive_expiry=30.0)


class ModelConfigError(Exception):
    """The model that was asked for cannot be had; the text says what to change."""


class ModelClient:
    """The process's one way to its models: resolves names, holds the connections, closes them."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] | None = None) -> None:
        """Open nothing yet.

        Args:
            settings: Limits, and the model that is asked for.
            environ: Where keys and OLLAMA_BASE_URL are looked up; `os.environ` by default.
        """
        self._settings = settings
        self._environ = os.environ if environ is None else environ
        self._http: httpx2.AsyncClient | None = None

    def resolve(self, name: str, url: str = "") -> Model | None:
        """The model that `--model NAME [--model-url URL]` asks for; None if it asks for none.

        Raises:
            ModelConfigError: The name or the URL is of no use, or a key is missing.
        """
        if url:
            _check_url(url)
            return self._openai(name or "default", url, model_key(self._environ))
        if not name:
            return None
        provider, _, rest = name.partition(":")
        if not rest:
            raise ModelConfigError(
                f"model {name!r} names no provider; write provider:name (such as openai:{name}), or give "
                "--model-url for an OpenAI-compatible server"
            )
        if provider == "ollama":
            where = ollama_url(self._environ)
            _check_url(where)
            return self._openai(rest, where, "ollama")
        try:
            return infer_model(name)
        except (UserError, ValueError, ImportError) as error:
            raise ModelConfigError(f"cannot use model {name!r}: {error}") from error

    def fallback(self) -> Model | None:
        """The model of `model_fallback`; None if none is set. The first model's key is not sent to another server.

        Raises:
            ModelConfigError: As `resolve`.
        """
        settings = self._settings
        name, url = settings.model_fallback, settings.model_fallback_url
        if not url:
            return self.resolve(name)
        _check_url(url)
        key = self._environ.get("HOLDFAST_MODEL_FALLBACK_KEY", "")
        if not key and settings.model_url and _server(url) == _server(settings.model_url):
            key = model_key(self._environ)
        return self._openai(name or "default", url, key or "none")

    async def aclose(self) -> None:
        """Close every connection; the client opens again when it is asked to."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _openai(self, name: str, url: str, key: str) -> Model:
        client = openai_client(base_url=url.rstrip("/"), api_key=key, http_client=self._client())
        provider = OpenAIProvider(openai_client=client)
        return OpenAIChatModel(
            name,
            provider=provider,
            profile=OpenAIModelProfile(
                openai_chat_streaming_requires_finish_reason=True,
                # llama.cpp's server, for one, knows only the older field, and silently answers without end.
                openai_chat_supports_max_completion_tokens=False,
                # An agent's instructions and those of one run are two; many models' templates refuse a second one.
                openai_chat_supports_multiple_system_messages=False,
            ),
        )

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            connect_s = self._settings.model_connect_s
            # Reads are bounded by the guard, by content instead of bytes; this is the net under it.
            timeout = httpx2.Timeout(self._settings.model_request_s + 5.0, connect=connect_s, pool=connect_s)
            transport = ProbedTransport(httpx2.AsyncHTTPTransport(limits=_KEEPALIVE), connect_s)
            self._http = httpx2.AsyncClient(transport=transport, timeout=timeout, follow_redirects=True)
        return self._http


def _server(url: str) -> tuple[str, str, int | None]:
    parsed = httpx2.URL(url)
    return parsed.scheme, parsed.host, parsed.port


def _check_url(url: str) -> None:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ModelConfigError(f"model URL {url!r} is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ModelConfigError(f"model URL {url!r} is no http(s) URL; write it like http://127.0.0.1:8485/v1")

"""Where the model of the settings is, if that is an address that we know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from holdfast.config.settings import Settings

OLLAMA: Final = "ollama:"
OLLAMA_URL: Final = "http://127.0.0.1:11434/v1"


def ollama_url(environ: Mapping[str, str] | None = None) -> str:
    """OLLAMA_BASE_URL, else Ollama's own default; `/v1` is added where no path is given."""
    env = os.environ if environ is None else environ
    url = (env.get("OLLAMA_BASE_URL") or OLLAMA_URL).rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def model_key(environ: Mapping[str, str] | None = None) -> str:
    """HOLDFAST_MODEL_KEY, else OPENAI_API_KEY, else "none": the key for the server at `model_url`."""
    env = os.environ if environ is None else environ
    return env.get("HOLDFAST_MODEL_KEY") or env.get("OPENAI_API_KEY") or "none"


def upstream_url(settings: Settings, environ: Mapping[str, str] | None = None) -> str:
    """The OpenAI-compatible server of `--model-url` or of `--model ollama:NAME`; "" where a provider's client knows."""
    if settings.model_url:
        return settings.model_url
    return ollama_url(environ) if settings.model.startswith(OLLAMA) else ""

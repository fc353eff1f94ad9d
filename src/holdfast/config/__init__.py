"""Settings: every bound by name, from the command line, the environment, holdfast.toml or the default."""

from holdfast.config.settings import SECRETS, Settings, SettingsError, load
from holdfast.config.upstream import model_key, ollama_url, upstream_url

__all__ = ["SECRETS", "Settings", "SettingsError", "load", "model_key", "ollama_url", "upstream_url"]

"""Settings: every bound by name, from the command line, the environment, holdfast.toml or the default."""

from holdfast.config.settings import Settings, SettingsError, load

__all__ = ["Settings", "SettingsError", "load"]

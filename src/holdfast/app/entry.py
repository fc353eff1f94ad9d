"""Who may enter: decided once at the start, and refused there where it would let in strangers."""

from __future__ import annotations

from holdfast.app.errors import StartError
from holdfast.config import Settings
from holdfast.gateway.access import SECRET_BYTES_MIN, Access, BadKeys
from holdfast.gateway.guards import is_loopback
from holdfast.telemetry import Log


def make_access(settings: Settings, log: Log) -> Access:
    """Make the door; without keys only this machine may enter, and no profile that promises more may start."""
    access = _read(settings, log)
    if access.keyless and settings.profile != "dev":
        raise StartError(
            f"cannot start: profile {settings.profile} needs API keys or tokens; set HOLDFAST_API_KEYS=name:key, "
            "api_keys_file, jwt_secret or jwks_url (`holdfast key NAME` makes a key), or use --profile dev on loopback"
        )
    if access.keyless and not is_loopback(settings.host):
        raise StartError(
            f"cannot start: without API keys only loopback is served, and --host is {settings.host}; "
            "use 127.0.0.1, or set HOLDFAST_API_KEYS=name:key (`holdfast key NAME` makes a key)"
        )
    secret = settings.jwt_secret.get_secret_value().encode()
    if secret and len(secret) < SECRET_BYTES_MIN:
        short = f"jwt_secret has {len(secret)} bytes, and HS256 needs {SECRET_BYTES_MIN}"
        if settings.profile != "dev":
            raise StartError(f"cannot start: {short}; make one with `openssl rand -hex 32`")
        log.write("degraded", what="tokens", why=short, remedy="make one with `openssl rand -hex 32`")
    return access


def make_probe_access(settings: Settings, log: Log) -> Access:
    """Make the door of a worker's probes: as a gateway's, but in every profile open to this machine without keys.

    Nothing can be started, stopped or read of a run there.
    """
    access = _read(settings, log)
    if access.keyless and not is_loopback(settings.health_host):
        raise StartError(
            f"cannot start: without API keys health is told on loopback only, and --health-host is "
            f"{settings.health_host}; use 127.0.0.1, or name a file with the line of a key that may read it: "
            "`holdfast key metrics` makes one, HOLDFAST_API_KEYS_FILE names it"
        )
    return access


def _read(settings: Settings, log: Log) -> Access:
    try:
        return Access(settings, log)
    except BadKeys as error:
        raise StartError(f"cannot start: {error}") from error

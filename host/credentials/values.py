"""Reading the loosely typed members of credential files (spec credentials 1.4). What cannot be read is not set."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from host.config.values import seconds

CANONICAL_NAMES: Final[Mapping[str, str]] = {
    dashed: dashed.replace("-", "_")
    for dashed in (
        *("api-key", "base-url", "disable-cooling", "excluded-models", "fingerprint-profile", "model-aliases"),
        *("proxy-url", "request-retry", "request-scoped-errors", "tool-prefix-disabled"),
    )
}
"""Members that older files write with dashes."""
_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INTEGER: Final = re.compile(r"[+-]?\d{1,18}")
_MILLISECONDS_FROM: Final = 10**12
_LATEST_S: Final = 253_402_300_799
"""The end of the year 9999: no later time can be written."""
_LARGEST_INTEGER: Final = 10**18
_EXPIRY: Final = ("expired", "expire", "expires_at", "expiresAt", "expiry", "expires")
_LAST_REFRESH: Final = ("last_refresh", "lastRefresh", "last_refreshed_at", "lastRefreshedAt")
_INTERVAL: Final = ("refresh_interval_seconds", "refreshIntervalSeconds", "refresh_interval", "refreshInterval")


def canonical_name(name: str) -> str:
    """The name under which a member of a file is known."""
    return CANONICAL_NAMES.get(name, name)


def canonical(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same members under their canonical names, in place; a canonical one wins over its dashed twin."""
    if not CANONICAL_NAMES.keys() & document.keys():
        return document
    found: dict[str, Any] = {}
    for name, value in document.items():
        to = CANONICAL_NAMES.get(name, name)
        if to == name or to not in document:
            found[to] = value
    return found


def text(value: Any) -> str:
    """A trimmed text; anything else is none."""
    return value.strip() if isinstance(value, str) else ""


def bool_like(value: Any) -> bool | None:
    """Booleans, numbers, and the texts `1 t T TRUE true True 0 f F FALSE false False`."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        stripped = value.strip()
        return True if stripped in _TRUE else False if stripped in _FALSE else None
    return value != 0 if isinstance(value, (int, float)) else None


def int_like(value: Any) -> int | None:
    """A whole number, or a text that is one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_INTEGER:
        value = int(value)
    if isinstance(value, int):
        return value if abs(value) < _LARGEST_INTEGER else None
    return int(value) if isinstance(value, str) and _INTEGER.fullmatch(value := value.strip()) else None


def time_like(value: Any) -> float | None:
    """Unix seconds of an RFC 3339 time, of `YYYY-MM-DD HH:MM[:SS]` (UTC), or of Unix seconds or milliseconds."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return _of_number(value)
    if not isinstance(value, str) or not (stripped := value.strip()):
        return None
    if _INTEGER.fullmatch(stripped):
        return _of_number(int(stripped))
    try:
        moment = datetime.fromisoformat(stripped.upper())  # RFC 3339 allows `t` and `z`
    except ValueError:
        return None
    found = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    # The year 1 is how some programs write "never"; an offset leads past the end of the year 9999.
    return found if 0 < found <= _LATEST_S else None


def _of_number(number: float) -> float | None:
    if not 0 < number <= _LATEST_S * 1000:
        return None
    return number / 1000 if number > _MILLISECONDS_FROM else float(number) if number <= _LATEST_S else None


def rfc3339(moment_s: float) -> str:
    """A time as files and payloads write it, in whole seconds; one that cannot be written is the nearest that can."""
    return datetime.fromtimestamp(min(max(0, int(moment_s)), _LATEST_S), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def expiry_of(document: Mapping[str, Any]) -> float | None:
    """When the access token expires: of the document, else of its `token`."""
    return _first_time(document, _EXPIRY)


def superseded_expiry(before: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Members of a document that say when the old token expires, once `changes` say it of the new one elsewhere.

    Programs call the expiry by different names; an old one left behind would make the new token look expired for ever.
    """
    fresh = {name: value for name, value in changes.items() if before.get(name) != value}
    if _first_time(fresh, _EXPIRY) is None:
        return ()
    return tuple(name for name in _EXPIRY if name in before and name not in fresh)


def last_refresh_of(document: Mapping[str, Any]) -> float | None:
    """When the token was refreshed last."""
    return _first_time(document, _LAST_REFRESH)


def _first_time(document: Mapping[str, Any], names: Iterable[str]) -> float | None:
    for place in (document, document.get("token"), document.get("Token")):
        if isinstance(place, Mapping):
            for name in names:
                if (moment := time_like(place.get(name))) is not None:
                    return moment
    return None


def refresh_interval_of(document: Mapping[str, Any]) -> float | None:
    """The preferred interval between refreshes, in seconds: a number of them or a duration."""
    for name in _INTERVAL:
        value = document.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            continue
        try:
            found = seconds(value)
        except ValueError:
            continue
        if found > 0:
            return found
    return None


def access_token_of(document: Mapping[str, Any]) -> str:
    """The access token: of the document, else of its `token`."""
    return _token_member(document, "access_token")


def refresh_token_of(document: Mapping[str, Any]) -> str:
    """The refresh token, as for the access token."""
    return _token_member(document, "refresh_token")


def _token_member(document: Mapping[str, Any], name: str) -> str:
    if found := text(document.get(name)):
        return found
    for place in (document.get("token"), document.get("Token")):
        if isinstance(place, Mapping) and (found := text(place.get(name))):
            return found
    return ""


def at_path(document: Mapping[str, Any], path: str) -> Any:
    """The value under a dotted path; None when there is none."""
    value: Any = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value

"""Which paths exist below the two bases, and which of them plugins may have (spec plugin-abi 7.7)."""

import re
from typing import Final

BASE: Final = "/v0/management"
RESOURCE_BASE: Final = "/v0/resource/plugins"
MAX_PATH: Final = 512

_LANDING: Final = re.compile(r"/([A-Za-z0-9-]+)/callback")
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9-]{0,31}")
_FORBIDDEN: Final = re.compile(r"[\s:*?#%\\\x00-\x1f\x7f]")
"""Beside what would be no path: no parameters and no wildcards, a page is one path."""


def is_below(path: str, base: str) -> bool:
    """Whether `path` is `base` or below it."""
    return path == base or path.startswith(f"{base}/")


def landing_path(path: str) -> str | None:
    """The path below the base that serves `/<provider>/callback`, where browsers come back from a login; None for any
    other path."""
    found = _LANDING.fullmatch(path)
    return f"/oauth-callback/{found[1]}" if found is not None else None


def segments_of(path: str) -> list[str]:
    """The parts of a path below a base."""
    return path.strip("/").split("/")


def route_method(method: str) -> str | None:
    """The method of a plugin's route, GET when it names none; None when it is no method."""
    upper = method.upper() or "GET"
    return upper if _METHOD.fullmatch(upper) else None


def route_path(path: str) -> str | None:
    """The full path of a plugin's management route, given with the base or without; None when it may not have it."""
    rest = _rest(path, BASE)
    return f"{BASE}{rest}" if rest is not None else None


def resource_path(plugin_id: str, path: str) -> str | None:
    """The full path of a plugin's public page, given relative, in full, or below `/plugins/<id>`; None if refused."""
    base = f"{RESOURCE_BASE}/{plugin_id}"
    trimmed = "/" + path.strip().lstrip("/")
    rest = _rest(path, base if is_below(trimmed, base) else f"/plugins/{plugin_id}")
    return f"{base}{rest}" if rest is not None else None


def _rest(path: str, base: str) -> str | None:
    rest = "/" + path.strip().lstrip("/")
    if is_below(rest, base):
        rest = rest[len(base) :]
    rest = rest.rstrip("/")
    parts = rest.split("/")[1:]
    if not rest or len(rest) > MAX_PATH or _FORBIDDEN.search(rest) or any(part in ("", ".", "..") for part in parts):
        return None
    return rest

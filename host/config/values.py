"""Values of the configuration that are written as text."""

import re
from typing import Final

_DURATION: Final = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)?$")
_UNIT_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(value: str | int | float) -> float:
    """A duration in seconds: `500ms`, `10s`, `5m`, `1h`, `1h30m` or a bare number. Raises ValueError otherwise."""
    if isinstance(value, (int, float)):
        if value < 0:
            raise ValueError(f"{value!r} is negative; a duration looks like 500ms, 10s, 5m or 1h")
        return float(value)
    text = value.strip()
    parts = re.findall(r"\d+(?:\.\d+)?(?:ms|[smhd])", text)
    if text and "".join(parts) == text:
        return sum(_one(part) for part in parts)
    return _one(text)


def _one(text: str) -> float:
    match = _DURATION.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no duration; write 500ms, 10s, 5m or 1h")
    return float(match[1]) * _UNIT_S[match[2] or "s"]


def listen_address(text: str) -> tuple[str, int] | str:
    """Where to listen: (host, port), or the path of a Unix socket. Raises ValueError with what would be right.

    `127.0.0.1:8318`, `[::1]:8318`, a bare port (on 127.0.0.1), or `unix:path`.
    """
    text = text.strip()
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").strip()
        if path:
            return path
    host, _, port = text.rpartition(":")
    if port.isascii() and port.isdigit() and int(port) < 65536 and (":" not in host or host.startswith("[")):
        return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
    raise ValueError(f"{text!r} is no address to listen on; write 127.0.0.1:8318, [::1]:8318 or unix:management.sock")

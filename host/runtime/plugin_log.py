"""Log lines of plugins: attributed, bounded, and unable to imitate the host's own."""

import logging
from collections.abc import Mapping
from typing import Any, Final

import structlog

from host.runtime.scope import RequestScope

log = structlog.get_logger("plugin")

MAX_TEXT_CHARACTERS: Final = 8192
MAX_FIELDS: Final = 64
DEFAULT_EVENT: Final = "plugin log"

_LEVELS: Final[Mapping[str, int]] = {
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
"""Everything else is debug."""
_RESERVED: Final = frozenset(
    {"event", "level", "logger", "timestamp", "plugin_id", "request_id", "exc_info", "exception", "stack", "stack_info"}
)
"""Set by the host or by the log's processors."""


def write_plugin_log(
    plugin_id: str, level: str, event: str, fields: Mapping[str, Any], *, request: RequestScope | None
) -> None:
    """Write one line; never raises. A blank event becomes `plugin log`, blank field names are dropped."""
    level_number = _LEVELS.get(level.strip().lower(), logging.DEBUG)
    kept: dict[str, Any] = {}
    for name, value in list(fields.items())[:MAX_FIELDS]:
        if field := _name(name):
            kept[field] = _bounded(value)
    if request is not None:
        kept["request_id"] = request.request_id
    log.log(level_number, _bounded(event.strip()) or DEFAULT_EVENT, plugin_id=plugin_id, **kept)


def _name(name: Any) -> str:
    text = str(name).strip()[:128]
    return f"plugin_{text}" if text in _RESERVED or text.startswith("_") else text


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT_CHARACTERS else value[:MAX_TEXT_CHARACTERS] + "…"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return _bounded(repr(value))

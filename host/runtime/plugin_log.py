"""Log lines of plugins: attributed, bounded, and unable to imitate the host's own."""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from msgspec import Struct

from host.observe.logs import mask_fields, redact
from host.runtime.scope import RequestScope

log = structlog.get_logger("plugin")

MAX_TEXT_CHARACTERS: Final = 8192
MAX_FIELDS: Final = 64
RING_LINES: Final = 200
RING_PLUGINS: Final = 256
RING_TEXT: Final = 512
RING_FIELDS: Final = 16
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


class PluginLogLine(Struct, frozen=True, kw_only=True):
    """A line that is remembered; `at_s` is the wall clock."""

    at_s: float
    level: str
    event: str
    fields: Mapping[str, Any]
    request_id: str = ""


class PluginLogs:
    """The latest lines of each plugin, its stderr included. Bounded in lines, in their length and in plugins."""

    def __init__(self, *, lines: int = RING_LINES, plugins: int = RING_PLUGINS) -> None:
        self._lines = lines
        self._plugins = plugins
        self._rings: OrderedDict[str, deque[PluginLogLine]] = OrderedDict()

    def keep(
        self, plugin_id: str, level: str, event: str, fields: Mapping[str, Any], *, request: RequestScope | None
    ) -> None:
        """Remember a line; never raises."""
        ring = self._rings.get(plugin_id)
        if ring is None:
            ring = self._rings[plugin_id] = deque(maxlen=self._lines)
            if len(self._rings) > self._plugins:
                self._rings.popitem(last=False)
        shown = {_name(name)[:64]: _shortened(value) for name, value in list(fields.items())[:RING_FIELDS]}
        ring.append(
            PluginLogLine(
                at_s=time.time(),
                level=logging.getLevelName(_LEVELS.get(level.strip().lower(), logging.DEBUG)).lower(),
                event=_shortened(event.strip()) or DEFAULT_EVENT,
                fields=shown,
                request_id=request.request_id if request is not None else "",
            )
        )

    def latest(self, plugin_id: str, count: int) -> Sequence[PluginLogLine]:
        """The newest lines, oldest first, without what looks like a secret."""
        found = list(self._rings.get(plugin_id, ()))[-count:] if count > 0 else []
        return [_redacted(line) for line in found]


def _redacted(line: PluginLogLine) -> PluginLogLine:
    fields = mask_fields(None, "", dict(line.fields))
    return PluginLogLine(
        at_s=line.at_s,
        level=line.level,
        event=redact(line.event),
        fields={name: redact(value) if isinstance(value, str) else value for name, value in fields.items()},
        request_id=line.request_id,
    )


def _shortened(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= RING_TEXT else text[:RING_TEXT] + "…"


def write_plugin_log(
    plugin_id: str, level: str, event: str, fields: Mapping[str, Any], *, request: RequestScope | None
) -> None:
    """Write one line; never raises. A blank event becomes `plugin log`, blank field names are dropped."""
    level_number = _LEVELS.get(level.strip().lower(), logging.DEBUG)
    kept: dict[str, Any] = {}
    for name, value in list(fields.items())[:MAX_FIELDS]:
        if field := _name(name):
            bounded = _bounded(value)
            kept[field] = redact(bounded) if isinstance(bounded, str) else bounded
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

"""The gateway's log as an author needs it: the plugin's own lines, its state, and the requests as trees."""

from collections.abc import Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import structlog

from host.app import Proxy
from host.dev.decisions import show_request
from host.dev.screen import Screen
from host.observe.explain import traced
from host.observe.logs import mask_fields

QUIET: Final[ContextVar[bool]] = ContextVar("jackfield_dev_quiet", default=False)
"""Set around the fake upstream, whose own log would only be in the way."""
_HOST_FIELDS: Final = frozenset(
    {"event", "level", "plugin_id", "request_id", "time", "logger", "traceback", "exc_info"}
)
_STATES: Final = frozenset({"ready", "backoff", "failed", "unresponsive"})
_LOUD: Final = frozenset({"warning", "error", "critical"})
_TOLD_ELSEWHERE: Final = frozenset(
    {
        *("plugin.call_failed", "upstream.failed", "credential.none_free"),
        *("plugin.start_failed", "plugin.died", "plugin.reload"),
    }
)
"""By the request's tree, by the state, and by the outcome of a reload."""
_TRACEBACK_LINES: Final = 8
"""The last ones name the author's line; what comes before is how the gateway got there."""
_STYLES: Final[Mapping[str, str]] = {"warning": "yellow", "error": "red", "critical": "red"}


class DevLog:
    """A structlog processor that prints and lets nothing through."""

    def __init__(self, screen: Screen, plugin_id: str, paths: Mapping[str, str]) -> None:
        """`paths` are how the gateway calls files of the plugin, and what the author calls them."""
        self.proxy: Proxy | None = None
        """Set when it has started; requests are shown from then on."""
        self._screen = screen
        self._plugin_id = plugin_id
        self._paths = paths

    def install(self) -> None:
        """Become the log of this process."""
        structlog.configure(
            processors=[structlog.processors.add_log_level, mask_fields, self],
            wrapper_class=structlog.make_filtering_bound_logger(20),
            logger_factory=structlog.ReturnLoggerFactory(),
            cache_logger_on_first_use=False,
        )

    def __call__(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if not QUIET.get():
            self._show(str(event.get("event", "")), event)
        raise structlog.DropEvent

    def _show(self, event: str, fields: Mapping[str, Any]) -> None:
        level = str(fields.get("level", "info"))
        is_own = fields.get("plugin_id") == self._plugin_id
        if event == "http.request":
            self._request(fields)
        elif event == "plugin.state":
            if is_own and fields.get("new") in _STATES:
                self._state(str(fields["new"]), fields)
        elif event in _TOLD_ELSEWHERE or event.startswith(("plugin.state", "proxy.", "config.applied")):
            return
        elif is_own and not event.startswith("plugin."):
            self._screen.event(self._plugin_id, self._line(event, fields), style=_STYLES.get(level, ""))
        elif level in _LOUD:
            who = str(fields.get("plugin_id") or "gateway")
            self._screen.event(who, f"{level}: {self._line(event, fields)}", style=_STYLES[level])

    def _state(self, state: str, fields: Mapping[str, Any]) -> None:
        reason = fields.get("reason") or ""
        if state == "ready":
            self._screen.event(self._plugin_id, f"ready, generation {fields.get('generation')}", style="green")
            return
        status = self.proxy.registry.status(self._plugin_id) if self.proxy is not None else None
        # A new version that does not come up is told of by whoever loads it.
        if status is not None and status.generation == fields.get("generation"):
            self._screen.event(self._plugin_id, f"{state}: {reason}", style="red")

    def _request(self, line: Mapping[str, Any]) -> None:
        proxy = self.proxy
        if proxy is None:
            return
        found = proxy.trace.get(str(line.get("request_id")))
        if found is not None:
            show_request(self._screen, traced(proxy.trace, found), plugin_id=self._plugin_id, line=line)
        else:
            self._screen.plain(f"\n{line.get('method')} {line.get('path')}  {line.get('status')}")

    def _line(self, event: str, fields: Mapping[str, Any]) -> str:
        shown = [f"{name}={value}" for name, value in fields.items() if name not in _HOST_FIELDS and value is not None]
        text = " ".join([event, *shown])
        traceback = str(fields.get("traceback") or "").splitlines()
        if len(traceback) > _TRACEBACK_LINES:
            traceback = ["…", *traceback[-_TRACEBACK_LINES:]]
        for alias, path in self._paths.items():
            text, traceback = text.replace(alias, path), [line.replace(alias, path) for line in traceback]
        return "\n".join([text, *traceback])

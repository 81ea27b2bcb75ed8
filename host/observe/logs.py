"""Structured logs: JSON lines in production, readable on a terminal, secrets masked, request ids attached."""

import asyncio
import atexit
import contextlib
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TextIO

import msgspec
import structlog

from host.observe.pieces import pieces_of

EVENTS: Final = (
    "access.body_unreadable",
    "access.provider_down",
    "child.signal_failed",
    "config.applied",
    "config.changed",
    "config.emptied",
    "config.needs_restart",
    "config.rejected",
    "config.superseded",
    "config.warning",
    "config.watch_failed",
    "control.refused",
    "control.unavailable",
    "cooldowns.not_kept",
    "cooldowns.not_loaded",
    "cooldowns.not_read",
    "cooldowns.not_saved",
    "cooldowns.too_late",
    "cooldowns.unreadable",
    "credential.amendment_refused",
    "credential.clock_set_back",
    "credential.file_rejected",
    "credential.files_changed",
    "credential.login_not_saved",
    "credential.models_failed",
    "credential.none_free",
    "credential.not_written",
    "credential.parse_failed",
    "credential.plugins_started",
    "credential.refresh_cut_off",
    "credential.refresh_failed",
    "credential.refresh_not_locked",
    "credential.refresh_not_shared",
    "credential.refresh_superseded",
    "credential.refreshed",
    "credential.rollback_failed",
    "credential.save_hook_failed",
    "credential.taken_over",
    "credential.watch_failed",
    "credential_source.unavailable",
    "cursors.unreadable",
    "guardian.died",
    "guardian.not_started",
    "guardian.unreachable",
    "http.error_after_terminal",
    "http.handler_failed",
    "http.request",
    "intercept.hidden_header",
    "intercept.refused",
    "login.failed",
    "login.poll_failed",
    "login.start_failed",
    "login.started",
    "login.succeeded",
    "logs.not_written",
    "management.api_call",
    "management.failed",
    "management.failures_unreadable",
    "management.key_hashed",
    "management.key_not_written",
    "management.key_refused",
    "management.listening",
    "management.refused",
    "management.register_failed",
    "management.route_refused",
    "management.route_taken",
    "management.secrets_read",
    "management.write",
    "models.changed",
    "pick.refused",
    "plugin.blocked",
    "plugin.call_failed",
    "plugin.call_unanswered",
    "plugin.close_timeout",
    "plugin.died",
    "plugin.drain_incomplete",
    "plugin.drain_timeout",
    "plugin.held_event_loop",
    "plugin.holds_event_loop",
    "plugin.ignores_cancellation",
    "plugin.ignores_close",
    "plugin.ignores_stdin_eof",
    "plugin.ignores_term",
    "plugin.late_error",
    "plugin.models_failed",
    "plugin.not_recalled",
    "plugin.not_remembered",
    "plugin.reconfigure_failed",
    "plugin.registration_refused",
    "plugin.reload",
    "plugin.retired",
    "plugin.shadowed",
    "plugin.shutdown_failed",
    "plugin.start_failed",
    "plugin.state",
    "plugin.supervision_failed",
    "plugin.unexpected_exception",
    "plugin.unknown_capability",
    "plugin.unusable",
    "plugin.upgrade_waits",
    "plugin.upgraded",
    "plugins.lock_not_written",
    "provider.not_executed",
    "proxy.ready",
    "route.refused",
    "settle.too_late",
    "shadow.blocked",
    "shadow.start_failed",
    "state.available",
    "state.clock_differs",
    "state.not_published",
    "state.not_written",
    "state.probe_failed",
    "state.server_ended",
    "state.server_left_running",
    "state.server_not_started",
    "state.server_started",
    "state.subscription_lost",
    "state.unavailable",
    "state.unreadable",
    "state.waits_for_earlier_server",
    "task.failed",
    "upstream.failed",
    "usage.not_sent",
    "usage.of_these_processes_only",
    "worker.ended",
    "worker.not_started",
    "worker.unreachable",
    "workers.ready",
)
"""Names of the host's log events, for dashboards and alerts; a test finds a name that is missing here."""

REQUEST_ID: Final[ContextVar[str]] = ContextVar("jackfield_request_id", default="")
"""The request that the running task works for; every log line of the task carries it."""

_MASKED: Final = "[redacted]"
_SECRET_FIELD: Final = re.compile(
    r"authorization|api[-_]?key|token$|secret|password|passwd|cookie|credential_value|private[-_]?key", re.IGNORECASE
)
_SECRET_PARAMETERS: Final = frozenset({"key", "value", "match", "code", "state"})
"""Whole names: keys, and what a browser brings back from a login."""
_SECRET_PARAMETER: Final = re.compile(r"api-key|apikey|api_key|token|secret", re.IGNORECASE)

_SECRET_TEXTS: Final = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {_MASKED}"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*"), _MASKED),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|ghs|glpat|sess|ya29)[-_.][A-Za-z0-9_.-]{8,}"), _MASKED),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{16,}"), _MASKED),
    (
        re.compile(
            r"""((?:authorization|api[-_ ]?key|(?:access|auth|refresh|id|session)[-_ ]?token|\btoken|secret|password)"""
            r"""["']?\s*[:=]\s*["']?)(?!\[redacted\]|bearer\b|basic\b|(?<=\w:apikey:)[0-9a-f]{12}(?:-\d+)?(?![\w.-]))"""
            r"""[^\s"',;&}]{4,}""",
            re.IGNORECASE,
        ),
        rf"\1{_MASKED}",
    ),
    (re.compile(r"([?&](?:key|auth_token)=)[^\s&\"']+"), rf"\1{_MASKED}"),
    (re.compile(r"(\w://)[^\s/\"'@]*:[^\s/\"'@]+@"), rf"\1{_MASKED}@"),
)
_FREE_TEXTS: Final = frozenset({"event", "error", "reason", "message", "why", "cause", "problem"})
"""Fields of log lines in which plugins and upstreams say what they want, an old key included."""


def redact(text: str) -> str:
    """`text` without what looks like a key, a token or an authorization value; ids of credentials stay."""
    for pattern, replacement in _SECRET_TEXTS:
        text = pattern.sub(replacement, text)
    return text


def mask_value(value: str) -> str:
    """A secret as logs show it: enough of both ends to recognise it, never enough to use it."""
    if len(value) > 8:
        return f"{value[:4]}...{value[-4:]}"
    if len(value) > 4:
        return f"{value[:2]}...{value[-2:]}"
    if len(value) > 2:
        return f"{value[:1]}...{value[-1:]}"
    return value


def mask_query(query: str) -> str:
    """A raw query string with the values of secret parameters masked."""
    if not query:
        return query
    return "&".join(_mask_pair(pair) for pair in query.split("&"))


def _mask_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    plain = name.removesuffix("[]").removesuffix("%5B%5D").lower()
    if equals and (plain in _SECRET_PARAMETERS or _SECRET_PARAMETER.search(plain)):
        return f"{name}={mask_value(value)}"
    return pair


def mask_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: values of fields with a secret's name, on two levels, never reach a log, and nothing that
    looks like a secret in texts that somebody else wrote."""
    for name, value in event.items():
        if isinstance(value, str):
            if _SECRET_FIELD.search(name):
                event[name] = _MASKED
            elif name in _FREE_TEXTS:
                event[name] = redact(value)
        elif isinstance(value, Mapping):
            event[name] = {
                key: _MASKED if isinstance(key, str) and _SECRET_FIELD.search(key) else member
                for key, member in value.items()
            }
    return event


def _redact_exception(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if isinstance(text := event.get("exception"), str):
        event["exception"] = redact(text)
    return event


RECENT_LINES: Final = 2000
"""Kept in memory for the management API."""


class LogSink:
    """Where lines go. Lines below `warning` may wait for a few milliseconds, so that a busy proxy writes them together.

    A full pipe blocks whoever writes to it; collecting keeps the number of such writes small.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        json_lines: bool = False,
        collect_s: float = 0.05,
        max_pending_bytes: int = 256 * 1024,
    ) -> None:
        self.json_lines = json_lines
        self._stream = stream
        self._collect_s = collect_s
        self._max_pending_bytes = max_pending_bytes
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._scheduled = False
        self.copy_to: Callable[[str], None] | None = None
        """Gets every batch of lines as well."""
        self.recent: deque[tuple[float, str]] = deque(maxlen=RECENT_LINES)
        """The latest lines, with the time they were written (Unix seconds)."""
        self.written = 0
        """Lines so far."""

    def __call__(self, *args: Any) -> "LogSink":
        """structlog's logger factory: one sink for all loggers."""
        return self

    def msg(self, line: str) -> None:
        """Write a line soon."""
        self._pending.append(line)
        self._pending_bytes += len(line)
        if self._pending_bytes >= self._max_pending_bytes or not self._schedule():
            self.flush()

    log = debug = info = msg

    def warning(self, line: str) -> None:
        """Write a line and everything before it now."""
        self._pending.append(line)
        self.flush()

    warn = error = critical = exception = fatal = failure = err = warning

    def flush(self) -> None:
        """Write what is pending. A closed or broken stream loses lines, never a request."""
        if not self._pending:
            return
        pieces = list(pieces_of(self._pending))
        now_s = time.time()
        self.recent.extend((now_s, line) for line in self._pending)
        self.written += len(self._pending)
        self._pending.clear()
        self._pending_bytes = 0
        with contextlib.suppress(OSError, ValueError):
            for piece in pieces:
                self._stream.write(piece)
                self._stream.flush()
        if self.copy_to is not None:
            self.copy_to("".join(pieces))

    def _schedule(self) -> bool:
        if self._scheduled:
            return True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        self._scheduled = True
        loop.call_later(self._collect_s, self._flush_scheduled)
        return True

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()


class RequestLine(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="event", tag="http.request"):
    """The log line of one request; absent members are not shown."""

    request_id: str = ""
    status: int = 0
    duration_ms: float = 0.0
    client: str = ""
    method: str = ""
    path: str = ""
    """With its query, secrets masked."""
    caller: str = ""
    """Name of the client's key."""
    streamed_bytes: int | None = None
    error: str = ""
    """Code of the error that the client got."""
    level: str = ""
    """Set by `RequestLog`, and so is the time."""
    time: str = ""


class RequestLog:
    """Writes one line per request, through structlog.

    As JSON lines it is encoded in one step, with the members that structlog's processors would give it: a line is
    written for every request, and the processors would be the largest part of its cost. Make it after
    `configure_logs`.
    """

    def __init__(self) -> None:
        factory = structlog.get_config().get("logger_factory")
        self._sink = factory if isinstance(factory, LogSink) and factory.json_lines else None
        self._logger = structlog.get_logger("host.web").bind()
        self._clock = Clock()
        self._encode = msgspec.json.Encoder().encode
        self._levels = {level for level in _LEVEL_NAMES if self._logger.is_enabled_for(level)}

    def write(self, line: RequestLine) -> None:
        """Log at `info`, from 400 `warning`, from 500 `error`."""
        level = logging.INFO if line.status < 400 else logging.WARNING if line.status < 500 else logging.ERROR
        if level not in self._levels:
            return
        if self._sink is None:
            fields = msgspec.to_builtins(line)
            self._logger.log(level, fields.pop("event"), **fields)
            return
        line.level = _LEVEL_NAMES[level]
        line.time = self._clock.now()
        self._sink.msg(str(self._encode(line), "utf-8"))


_LEVEL_NAMES: Final = {logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}


class Clock:
    """The time of a line as RFC 3339 in UTC with milliseconds; the part up to the second is formatted once."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        now_s = time.time()
        second = int(now_s)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._text}.{int((now_s - second) * 1000):03d}Z"


def _to_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


class _Stamp:
    """structlog processor: time of the line and the request it belongs to."""

    def __init__(self) -> None:
        self._clock = Clock()

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["time"] = self._clock.now()
        if (request_id := REQUEST_ID.get()) and "request_id" not in event:
            event["request_id"] = request_id
        return event


def configure_logs(
    *, debug: bool = False, quiet: bool = False, stream: TextIO | None = None, readable: bool | None = None
) -> LogSink:
    """Set structlog up for the process; call it once, before the first line.

    `quiet`: warnings and above only. `readable` absent: readable on a terminal, JSON lines otherwise.
    Standard-library loggers at `warning` and above end in the same stream.
    """
    stream = stream if stream is not None else sys.stderr
    if readable is None:
        readable = stream.isatty() and "NO_COLOR" not in os.environ
    sink = LogSink(stream, json_lines=not readable)
    processors: list[Any] = [
        structlog.processors.add_log_level,
        mask_fields,
        _Stamp(),
    ]
    if readable:
        # The default shows the values of all variables, passwords too, where the package `rich` happens to be.
        processors += [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    else:
        processors += [structlog.processors.format_exc_info, _redact_exception, _to_json]
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=sink,
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(logging.DEBUG if debug else logging.WARNING)
    atexit.register(sink.flush)
    return sink


def set_debug(debug: bool) -> None:
    """Show debug lines from now on, or no longer; nothing before `configure_logs`."""
    if current_sink() is None:
        return
    level = logging.DEBUG if debug else logging.INFO
    structlog.configure(
        **{**structlog.get_config(), "wrapper_class": structlog.make_filtering_bound_logger(level)},
    )
    _route_standard_logging(logging.DEBUG if debug else logging.WARNING)


def current_sink() -> LogSink | None:
    """Where the process's lines go; None before `configure_logs`."""
    factory = structlog.get_config().get("logger_factory")
    return factory if isinstance(factory, LogSink) else None


class _ToStructlog(logging.Handler):
    """Lines of libraries (asyncio, aiohttp, grpc) as structured events."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info:
            fields["exc_info"] = record.exc_info
        logger.log(record.levelno, record.getMessage(), **fields)


def _route_standard_logging(level: int) -> None:
    root = logging.getLogger()
    for handler in _our_handlers(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_ToStructlog())
    root.setLevel(level)
    # It tells of every file that it was not asked about; one of them may be the log.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def _our_handlers(handlers: Iterable[logging.Handler]) -> list[logging.Handler]:
    return [handler for handler in handlers if isinstance(handler, _ToStructlog)]

"""Structured logs: JSON lines in production, readable on a terminal, secrets masked, request ids attached."""

import atexit
import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, TextIO

import msgspec
import structlog

EVENTS: Final = (
    "http.request",
    "http.handler_failed",
    "http.stream_close_failed",
    "http.error_after_terminal",
    "plugin.event_loop_blocked",
    "plugin.log",
    "plugin.ready",
    "plugin.state",
    "task.failed",
)
"""Names of log events that dashboards may rely on; a new one is added here with the code that writes it."""

_MASKED: Final = "[redacted]"
_SECRET_FIELD: Final = re.compile(
    r"authorization|api[-_]?key|token$|secret|password|passwd|cookie|credential_value|private[-_]?key", re.IGNORECASE
)
_SECRET_PARAMETER: Final = re.compile(r"api-key|apikey|api_key|token|secret", re.IGNORECASE)

_SECRET_TEXTS: Final = (
    (re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {_MASKED}"),
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]+\.[\w-]*"), _MASKED),
    (re.compile(r"\b(?:sk|pk|rk|gsk|xai|hf|ghp|gho|ghs|glpat|sess|ya29)[-_.][A-Za-z0-9_.-]{8,}"), _MASKED),
    (re.compile(r"\bAIza[0-9A-Za-z_-]{16,}"), _MASKED),
    (
        re.compile(
            r"""((?:authorization|api[-_ ]?key|(?:access|auth|refresh|id|session)[-_ ]?token|\btoken|secret|password)"""
            r"""["']?\s*[:=]\s*["']?)(?!\[redacted\]|bearer\b|basic\b)[^\s"',;&}]{4,}""",
            re.IGNORECASE,
        ),
        rf"\1{_MASKED}",
    ),
    (re.compile(r"([?&](?:key|auth_token)=)[^\s&\"']+"), rf"\1{_MASKED}"),
)


def redact(text: str) -> str:
    """`text` without what looks like a key, a token or an authorization value."""
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
    if equals and (plain == "key" or _SECRET_PARAMETER.search(plain)):
        return f"{name}={mask_value(value)}"
    return pair


def mask_header(name: str, value: str) -> str:
    """A header value as logs may show it: an authorization keeps its scheme, other secrets are masked whole."""
    lowered = name.lower()
    if "authorization" in lowered:
        scheme, space, secret = value.partition(" ")
        return f"{scheme} {mask_value(secret)}" if space else mask_value(value)
    if any(word in lowered for word in ("api-key", "apikey", "token", "secret", "cookie")):
        return mask_value(value)
    return value


def mask_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: values of fields with a secret's name, on two levels, never reach a log."""
    for name, value in event.items():
        if isinstance(value, str):
            if _SECRET_FIELD.search(name):
                event[name] = _MASKED
        elif isinstance(value, Mapping):
            event[name] = {
                key: _MASKED if isinstance(key, str) and _SECRET_FIELD.search(key) else member
                for key, member in value.items()
            }
    return event


class LogSink:
    """Where lines go. Lines below `warning` may wait for a few milliseconds, so that a busy proxy writes them together.

    A full pipe blocks whoever writes to it; collecting keeps the number of such writes small.
    """

    def __init__(self, stream: TextIO, *, collect_s: float = 0.05, max_pending_bytes: int = 256 * 1024) -> None:
        self._stream = stream
        self._collect_s = collect_s
        self._max_pending_bytes = max_pending_bytes
        self._pending: list[str] = []
        self._pending_bytes = 0
        self._scheduled = False

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
        lines = "\n".join(self._pending) + "\n"
        self._pending.clear()
        self._pending_bytes = 0
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(lines)
            self._stream.flush()

    def _schedule(self) -> bool:
        if self._scheduled:
            return True
        import asyncio

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


def _to_json(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
    return msgspec.json.encode(event, enc_hook=str).decode()


def _numeric_time(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    import datetime

    event["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return event


def configure_logs(*, debug: bool = False, stream: TextIO | None = None, readable: bool | None = None) -> LogSink:
    """Set structlog up for the process; call it once, before the first line.

    `readable` absent: readable on a terminal, JSON lines otherwise. Standard-library loggers at `warning` and above end
    in the same stream.
    """
    stream = stream if stream is not None else sys.stderr
    if readable is None:
        readable = stream.isatty() and "NO_COLOR" not in os.environ
    sink = LogSink(stream)
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        mask_fields,
        _numeric_time,
    ]
    if readable:
        processors += [structlog.dev.ConsoleRenderer()]
    else:
        processors += [structlog.processors.format_exc_info, _to_json]
    level = logging.DEBUG if debug else logging.INFO
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=sink,
        cache_logger_on_first_use=False,
    )
    _route_standard_logging(logging.DEBUG if debug else logging.WARNING)
    atexit.register(sink.flush)
    return sink


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


def _our_handlers(handlers: Iterable[logging.Handler]) -> list[logging.Handler]:
    return [handler for handler in handlers if isinstance(handler, _ToStructlog)]

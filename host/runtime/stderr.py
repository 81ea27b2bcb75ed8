"""What a plugin process writes to stderr: drained for ever, kept as a ring, and turned into log lines.

Drained from the first millisecond, because a full pipe blocks the plugin (F2). A flood costs the host little: beyond
a rate lines are counted instead of parsed, and beyond another one reading pauses for a moment.
"""

import asyncio
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

import msgspec

from host.runtime.teardown import finish

RING_BYTES: Final = 64 * 1024
LINE_MAX_BYTES: Final = 16 * 1024
LINES_PER_SECOND: Final = 200
LINES_BURST: Final = 400
READ_WINDOW_S: Final = 0.1
READ_WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Read at most this much per window; a plugin that writes more waits for the rest of the window."""
TRACEBACK_MAX_LINES: Final = 200
SECRET_MIN_CHARACTERS: Final = 6
"""Shorter values are not masked: they would blank out ordinary words."""

MASK: Final = "***"
_TRACEBACK_HEAD: Final = "Traceback (most recent call last):"
_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_SECRETS: Final = re.compile(
    r"(?i)(\b(?:bearer|basic)\s+)[a-z0-9._~+/=-]{6,}"
    r"|((?:api[-_]?key|x-goog-api-key|access[-_]?token|refresh[-_]?token|auth[-_]?token|client[-_]?secret|password|secret)"
    r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&]{4,}"
    r"|\b(sk-|AIza|ghp_|xox[abp]-)[A-Za-z0-9_-]{8,}"
)
_SECRET_HINTS: Final = ("bearer", "basic", "key", "token", "password", "secret", "sk-", "aiza", "ghp_", "xox")
"""Without one of these, whatever their case, `_SECRETS` matches nothing."""
_LEVELS: Final[Mapping[str, str]] = {
    "trace": "debug",
    "debug": "debug",
    "info": "info",
    "notice": "info",
    "warn": "warning",
    "warning": "warning",
    "error": "error",
    "err": "error",
    "critical": "error",
    "fatal": "error",
    "panic": "error",
}
_LEVEL_PREFIX: Final = re.compile(r"^\s*(?:\[([A-Za-z]{3,8})\]|([A-Z]{3,8}):?)(?=[\s:])[\s:]*(.*)$", re.DOTALL)

LogSink = Callable[[str, str, Mapping[str, Any]], None]
"""Called as `sink(level, event, fields)`; level is debug, info, warning or error."""


_SECRET_NAME: Final = re.compile(r"(?i)key|token|secret|passw|credential|auth")


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """The values of an environment that must not be shown: by their names, or because they look random."""
    return [
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) or (len(value) >= 20 and value.isascii() and not re.search(r"[\s/:.]", value))
    ]


class SecretMask:
    """Replaces known values and what looks like a secret.

    A plain search comes first: the patterns take a hundred times as long, and hardly any line has a secret.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._known = sorted({it for it in secrets if len(it) >= SECRET_MIN_CHARACTERS}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, MASK)
        folded = text.casefold()
        if not any(hint in folded for hint in _SECRET_HINTS):
            return text
        return _SECRETS.sub(lambda match: (match[1] or match[2] or match[3] or "") + MASK, text)


class LineLog:
    """Turns lines into log records: JSON objects, level prefixes, grouped tracebacks; rate-limited. Sans-io."""

    def __init__(
        self,
        sink: LogSink,
        *,
        clock: Callable[[], float] = time.monotonic,
        level: str = "info",
        on_suppressed: Callable[[int], None] | None = None,
    ) -> None:
        self._sink = sink
        self._on_suppressed = on_suppressed
        self._clock = clock
        self._level = level
        self._tokens = float(LINES_BURST)
        self._refilled_s = clock()
        self._traceback: list[str] = []
        self.suppressed = 0
        """Lines that were dropped since the last record."""

    @property
    def exhausted(self) -> bool:
        """Whether lines come faster than they may be looked at; they are to be counted in `suppressed` then."""
        if self._tokens < 1.0:
            now_s = self._clock()
            self._tokens = min(float(LINES_BURST), self._tokens + (now_s - self._refilled_s) * LINES_PER_SECOND)
            self._refilled_s = now_s
        return self._tokens < 1.0

    def admit(self) -> bool:
        """Whether another line may be looked at now; a refused one is counted."""
        if self.exhausted:
            self.suppress(1)
            return False
        self._tokens -= 1.0
        return True

    def suppress(self, lines: int) -> None:
        """Count lines that are not looked at; the record of them waits for the next line that is."""
        self.suppressed += lines
        if self._on_suppressed is not None:
            self._on_suppressed(lines)

    def line(self, text: str) -> None:
        """One admitted line, cleaned and masked."""
        if self._traceback:
            if len(self._traceback) < TRACEBACK_MAX_LINES and (not text.strip() or text[:1].isspace()):
                self._traceback.append(text)
                return
            # The first line that is not indented is the exception itself.
            lines, self._traceback = [*self._traceback, text], []
            self._emit("error", text.strip(), {"traceback": "\n".join(lines)})
            return
        if text.startswith(_TRACEBACK_HEAD):
            self._traceback = [text]
            return
        if text.strip():
            self._emit(*self._parsed(text))

    def flush(self) -> None:
        """Emit what is held back; called at the end of the pipe."""
        if self._traceback:
            lines, self._traceback = self._traceback, []
            self._emit("error", lines[-1].strip(), {"traceback": "\n".join(lines)})
        if self.suppressed:
            self._emit("warning", "output suppressed", {})

    def _emit(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        if self.suppressed:
            fields = {**fields, "suppressed_lines": self.suppressed}
            self.suppressed = 0
        self._sink(level, event, fields)

    def _parsed(self, text: str) -> tuple[str, str, Mapping[str, Any]]:
        if text.startswith("{"):
            try:
                fields = msgspec.json.decode(text)
            except msgspec.DecodeError:
                fields = None
            if isinstance(fields, dict):
                return self._record(fields)
        match = _LEVEL_PREFIX.match(text)
        if match is not None:
            level = _LEVELS.get((match[1] or match[2]).lower())
            if level is not None:
                return level, match[3].strip(), {}
        return self._level, text.strip(), {}

    def _record(self, fields: dict[str, Any]) -> tuple[str, str, Mapping[str, Any]]:
        named = next((fields.pop(key) for key in ("level", "severity", "levelname") if key in fields), None)
        event = next((fields.pop(key) for key in ("event", "msg", "message") if key in fields), "")
        return _LEVELS.get(str(named).lower(), self._level), str(event), fields


class StderrDrain(asyncio.Protocol):
    """Reads one pipe to its end; the owner of the ring and of the log lines."""

    def __init__(
        self,
        sink: LogSink,
        *,
        mask: SecretMask,
        level: str = "info",
        on_suppressed: Callable[[int], None] | None = None,
    ) -> None:
        """`on_suppressed` is told how many lines were not looked at, whenever that happens."""
        self.stray_lines = 0
        self._mask = mask
        self._log = LineLog(sink, level=level, on_suppressed=on_suppressed)
        self._ring = bytearray()
        self._partial = b""
        self._skipping = False
        self._transport: asyncio.ReadTransport | None = None
        self._window_ends_s = 0.0
        self._window_bytes = 0
        self._ended = asyncio.get_running_loop().create_future()

    async def start(self, fd: int) -> None:
        """Take over the descriptor and begin to read. A cancellation takes effect when that is done."""
        pipe = os.fdopen(fd, "rb", buffering=0)
        # Interrupted half-way, uvloop closes the descriptor and leaves `pipe` to close it again when it is collected:
        # by then the number may belong to somebody else.
        await finish(asyncio.ensure_future(asyncio.get_running_loop().connect_read_pipe(lambda: self, pipe)))

    def stray(self, line: bytes) -> None:
        """A line the plugin printed among its frames (F1): kept and logged as its output, like stderr."""
        self.stray_lines += 1
        self._remember(line + b"\n")
        self._report(line)

    def tail(self, lines: int) -> list[str]:
        """The last lines written, cleaned and masked; an unfinished one included."""
        kept = bytes(self._ring[-RING_BYTES:]).split(b"\n")
        if not kept[-1]:
            kept.pop()
        return [self._clean(line) for line in kept[-lines:]]

    async def ended_within(self, seconds: float) -> bool:
        """Whether the pipe has been read to its end, waiting at most `seconds` for it."""
        if not self._ended.done():
            await asyncio.wait([self._ended], timeout=seconds)
        return bool(self._ended.done())

    def close(self) -> None:
        """Stop reading; whoever still holds the other end gets EPIPE."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not an isinstance check: uvloop's pipe transports do not derive from asyncio's classes.
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._throttle(len(data))
        self._remember(data)
        if self._log.exhausted:
            self._count(data)
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            line, self._partial = self._partial + line, b""
            if self._skipping:
                self._skipping = False  # the end of a line whose beginning was reported or counted already
            else:
                self._report(line)
        self._hold(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._partial:
            self._report(self._partial)
            self._partial = b""
        self._log.flush()
        if not self._ended.done():
            self._ended.set_result(None)

    def _count(self, data: bytes) -> None:
        """A flood: its lines are only counted, at the price of looking for their ends."""
        ends = data.count(b"\n")
        if not ends:
            self._partial, self._skipping = b"", True
            return
        self._log.suppress(ends)
        self._partial, self._skipping = b"", False
        self._hold(data[data.rfind(b"\n") + 1 :])

    def _hold(self, rest: bytes) -> None:
        """Keep the beginning of a line for what follows, up to the length of a line."""
        self._partial += rest
        if len(self._partial) > LINE_MAX_BYTES:
            if not self._skipping:
                self._report(self._partial)
                self._skipping = True
            self._partial = b""

    def _report(self, line: bytes) -> None:
        if self._log.admit():
            self._log.line(self._clean(line))

    def _remember(self, data: bytes) -> None:
        self._ring += data
        if len(self._ring) > 2 * RING_BYTES:
            del self._ring[:-RING_BYTES]

    def _clean(self, line: bytes) -> str:
        text = line.rstrip(b"\r")[:LINE_MAX_BYTES].decode("utf-8", "replace")
        return self._mask(text if text.isprintable() else _CONTROL.sub("", text))

    def _throttle(self, size: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._window_ends_s:
            self._window_ends_s = now_s + READ_WINDOW_S
            self._window_bytes = 0
        self._window_bytes += size
        if self._window_bytes > READ_WINDOW_BYTES and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(self._window_ends_s - now_s, self._resume)

    def _resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

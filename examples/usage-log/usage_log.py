"""Adds up tokens per model and credential in a file of JSON lines: the last line of a pair has its totals."""

import os
import threading
from pathlib import Path

import msgspec

from pluginapi import (
    Context,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    ShutdownRequest,
    UsageHandleRequest,
    blocking,
    serve,
)


class Totals(msgspec.Struct, kw_only=True):
    """One line of the file."""

    model: str
    credential: str
    requests: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    last: str = ""
    """When the latest request began, RFC 3339."""


class UsageLog(Plugin):
    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], Totals] = {}
        self._file = Path("usage.jsonl")
        # Hooks with @blocking run in threads, several at once.
        self._lock = threading.Lock()

    @blocking
    def plugin_register(self, request: RegisterRequest, ctx: Context) -> RegisterResponse | None:
        self._file = Path(self.config.get("file", "usage.jsonl"))
        for line in self._file.read_bytes().splitlines() if self._file.exists() else ():
            try:
                totals = msgspec.json.decode(line, type=Totals)
            except msgspec.DecodeError:
                ctx.log.warning("usage.line_ignored", line=line[:100].decode("utf-8", "replace"))
                continue
            self._totals[totals.model, totals.credential] = totals
        return None

    @blocking
    def usage_handle(self, request: UsageHandleRequest) -> None:
        with self._lock:
            key = (request.model, request.credential_id)
            totals = self._totals.setdefault(key, Totals(model=key[0], credential=key[1]))
            totals.requests += 1
            totals.failed += request.failed
            totals.input_tokens += request.usage.input_tokens or 0
            totals.output_tokens += request.usage.output_tokens or 0
            totals.last = request.requested_at
            with self._file.open("ab") as file:
                file.write(msgspec.json.encode(totals) + b"\n")

    @blocking
    def plugin_shutdown(self, request: ShutdownRequest) -> None:
        """One line per pair is enough for the next start."""
        with self._lock:
            written = self._file.with_suffix(".new")
            written.write_bytes(b"".join(msgspec.json.encode(totals) + b"\n" for totals in self._totals.values()))
            os.replace(written, self._file)


if __name__ == "__main__":
    serve(UsageLog)

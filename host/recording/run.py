"""Recordings of the running proxy: one at a time, read through the control socket."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec import Struct

from host import VERSION
from host.credentials.records import Credential
from host.credentials.spoken import secret_texts
from host.recording.format import Head
from host.recording.redact import Redactor
from host.recording.tap import Recorder
from host.runtime.callbacks import HostCallbacks
from host.runtime.invoke import Invoker
from host.runtime.status import PluginStatus

HEARTBEAT_S: Final = 1.0
"""Nothing to write for so long: an empty line, by which a reader that left is noticed."""


class RecordingRuns(Exception):
    """Somebody else records already; the message names the plugin."""


class RecordOrder(Struct, frozen=True, kw_only=True):
    """What to record, and how much of it."""

    plugin_id: str
    limit_s: float
    max_bytes: int
    redact_bodies: bool = False


class Recordings:
    """Puts the tap in and takes it out. `secrets` are texts that no recording may hold."""

    def __init__(
        self,
        *,
        invoker: Invoker,
        callbacks: HostCallbacks,
        status: Callable[[str], PluginStatus | None],
        secrets: Callable[[str], Iterable[str]],
    ) -> None:
        self._invoker: Final = invoker
        self._callbacks: Final = callbacks
        self._status: Final = status
        self._secrets: Final = secrets
        self._running: tuple[str, Recorder] | None = None

    def start(self, order: RecordOrder) -> AsyncGenerator[bytes, None]:
        """Record from now on; the lines of the file, and empty ones. Closing the iterator ends the recording.

        Raises KeyError for a plugin that does not run, and RecordingRuns.
        """
        status = self._status(order.plugin_id)
        if status is None or not status.generation:
            raise KeyError(order.plugin_id)
        if self._running is not None:
            raise RecordingRuns(f"plugin {self._running[0]} is being recorded; one recording at a time")
        redactor = Redactor(secrets=lambda: self._secrets(order.plugin_id), bodies=order.redact_bodies)
        head = Head(
            plugin=order.plugin_id,
            plugin_version=status.version,
            host_version=VERSION,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            redacted_bodies=order.redact_bodies,
            config=redactor.plain(msgspec.json.encode(status.config)),
            permissions=status.permissions_granted,
        )
        recorder = Recorder(head, redactor, max_bytes=order.max_bytes)
        self._running = (order.plugin_id, recorder)
        self._invoker.tap = self._callbacks.tap = recorder
        return self._lines(recorder, order.limit_s)

    def stop(self) -> None:
        """End what runs: the proxy is going down."""
        if self._running is not None:
            self._running[1].stop("shutdown")

    async def _lines(self, recorder: Recorder, limit_s: float) -> AsyncGenerator[bytes, None]:
        timer = asyncio.get_running_loop().call_later(limit_s, recorder.stop, "time")
        try:
            async for line in recorder.lines(heartbeat_s=HEARTBEAT_S):
                yield line
        finally:
            timer.cancel()
            recorder.stop("stopped")
            self._invoker.tap = self._callbacks.tap = None
            self._running = None


def secrets_of(credentials: Iterable[Credential], api_keys: Iterable[str]) -> Iterator[str]:
    """Every secret text the proxy knows."""
    yield from api_keys
    for credential in credentials:
        yield from secret_texts(credential)

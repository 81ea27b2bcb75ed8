"""What a hook gets beside its request: whose call this is, how long it may take, and the way back to the host."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Final, Protocol, TypeVar

from pluginabi.body import StreamItem
from pluginabi.errors import host_error
from pluginabi.frames import Usage
from pluginabi.payloads.common import Payload
from pluginapi.callbacks import Auth, Http, Kv, Model

R = TypeVar("R")


class CancelSignal(Protocol):
    """Set when the caller no longer wants the answer. `is_set` may be asked from any thread."""

    def is_set(self) -> bool: ...

    async def wait(self) -> Any: ...

    def set(self) -> None: ...


class ItemSource(Protocol):
    """Items of a stream that a callback opened; credit goes back as they are consumed."""

    @property
    def usage(self) -> Usage | None:
        """Set once the stream has ended, if the other side knew it."""

    def __aiter__(self) -> AsyncIterator[StreamItem]: ...

    async def aclose(self, reason: str = "client_gone") -> None: ...


class CallbackPort(Protocol):
    """The way to the host: a session's frames in a process, the host's own functions in-process.

    Both methods raise `PluginError` with everything the host said; cancelling the awaiting task cancels the callback.
    """

    async def call(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> Payload: ...

    async def stream(
        self, method: str, params: Payload, *, timeout_ms: int | None = None
    ) -> tuple[Payload, ItemSource]: ...

    def detached(self) -> "Context":
        """What `Context.detached` answers."""


LogSink = Callable[[str, str, Mapping[str, Any]], None]
"""`sink(level, event, fields)`; must not block and must not raise."""


class Logger:
    """Structured log lines, attributed by the host to this plugin and request: `ctx.log.info("cache.hit", key=…)`."""

    __slots__ = ("_sink",)

    def __init__(self, sink: LogSink) -> None:
        self._sink = sink

    def debug(self, event: str, **fields: Any) -> None:
        self._sink("debug", event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._sink("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._sink("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._sink("error", event, fields)


class NoHost:
    """The port of a context without a host: every callback is refused with `permission_denied`."""

    async def call(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> Payload:
        raise host_error("permission_denied", f"{method}: this call has no host to ask")

    async def stream(
        self, method: str, params: Payload, *, timeout_ms: int | None = None
    ) -> tuple[Payload, ItemSource]:
        raise host_error("permission_denied", f"{method}: this call has no host to ask")

    def detached(self) -> "Context":
        return Context()


def _drop(level: str, event: str, fields: Mapping[str, Any]) -> None:
    """The log of a context that nobody listens to."""


class Context:
    """One call, valid until the hook has answered (a stream: its last item); later callbacks get `parent_closed`."""

    __slots__ = (
        "_cancelled",
        "_deadline_s",
        "_loop",
        "_make_cancelled",
        "_port",
        "_sink",
        "permissions",
        "plugin_id",
        "request_id",
    )

    def __init__(
        self,
        *,
        plugin_id: str = "",
        request_id: str = "",
        port: CallbackPort | None = None,
        log: LogSink = _drop,
        permissions: frozenset[str] = frozenset(),
        deadline_s: float | None = None,
        cancelled: Callable[[], CancelSignal] = asyncio.Event,
    ) -> None:
        """`deadline_s` is on the monotonic clock (`time.monotonic`); None: no deadline.

        `cancelled` makes the signal: few hooks ask for it.
        """
        self.plugin_id: Final = plugin_id
        self.request_id: Final = request_id
        """Of the client request this call belongs to; empty for calls outside of one (register, model lists)."""
        self.permissions: Final = permissions
        """What the operator granted; a callback without its permission fails with `permission_denied`."""
        self._port: Final[CallbackPort] = port if port is not None else NoHost()
        self._sink: Final = log
        self._deadline_s = deadline_s
        self._make_cancelled = cancelled
        self._cancelled: CancelSignal | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def remaining_s(self) -> float | None:
        """Seconds until the caller gives up, never negative; None without a deadline."""
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - time.monotonic())

    @property
    def cancelled(self) -> CancelSignal:
        """Set when nobody wants the answer any more. An `async` hook is cancelled as well and rarely needs it; a
        `@blocking` one has to look at `ctx.cancelled.is_set()` now and then."""
        if self._cancelled is None:
            self._cancelled = self._make_cancelled()
        return self._cancelled

    @property
    def log(self) -> Logger:
        return Logger(self._sink)

    @property
    def http(self) -> Http:
        """host.http.*: HTTP through the host, which attaches credentials and proxies (permission `http`)."""
        return Http(self._port)

    @property
    def model(self) -> Model:
        """host.model.*: run a model through the whole gateway (permission `model`)."""
        return Model(self._port)

    @property
    def kv(self) -> Kv:
        """host.kv.*: a small store, scoped to this plugin (permission `kv`)."""
        return Kv(self._port)

    @property
    def auth(self) -> Auth:
        """host.auth.*: credential files (permissions `auth.read`, `auth.write`)."""
        return Auth(self._port)

    def detached(self) -> "Context":
        """A context for the plugin's own work, valid until the plugin ends: `kv`, `http`, `auth` and `log`, with the
        permissions the plugin has then. It belongs to no call: no request id, no deadline, no `model`.

        Whoever starts a task with it ends that task in `plugin_shutdown`; afterwards callbacks get `parent_closed`.
        """
        return self._port.detached()

    def run_sync(self, work: Coroutine[Any, Any, R]) -> R:
        """Await a callback from a `@blocking` hook: `ctx.run_sync(ctx.kv.get("seen"))`.

        Raises what the callback raises, and RuntimeError in an `async` hook, where it would wait for itself.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("run_sync is for @blocking hooks; await the callback instead")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def enter_thread(self) -> None:
        """Called by the dispatcher on the event loop before a `@blocking` hook starts."""
        self._loop = asyncio.get_running_loop()
        # Made here and not by the thread that asks for it: two threads could each make one.
        self._cancelled = self.cancelled

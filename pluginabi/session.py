"""Many calls over one channel: ids, answers, streams, credit, cancellation, liveness, and a clean end for all of them.

The session routes; it never runs plugin or host code in the reader: the handler it is given starts a task. It has no
policy: it starts no process, retries nothing, limits nothing but what a peer could use to exhaust this side.
"""

import asyncio
from collections.abc import Callable
from time import thread_time
from typing import Any, Final, Literal, TypeAlias

from msgspec import Raw

from pluginabi.call import IncomingCall, OutgoingCall
from pluginabi.channel import FrameChannel
from pluginabi.codec import BrokenFrame
from pluginabi.errors import AbiError, Phase
from pluginabi.frames import (
    Call,
    Cancel,
    Credit,
    End,
    Frame,
    Goaway,
    Hello,
    Item,
    Log,
    Ping,
    Pong,
    Result,
)
from pluginabi.incoming import IncomingCalls
from pluginabi.limits import Limits
from pluginabi.link import CHANNEL_FAULTS, Link, ProtocolError
from pluginabi.outgoing import OutgoingCalls
from pluginabi.patience import BYTE_S, LATE_S, LINE_S, Patience
from pluginabi.payloads.common import Payload

__all__ = ["CallHandler", "ProtocolError", "Session"]

CallHandler: TypeAlias = Callable[[IncomingCall], None]
"""Told about each call of the peer, by the reader: must not block, must not raise; starts a task."""

_CLOSE_FLUSH_S: Final = 1.0
"""How long `close` waits for a peer to take the last frames."""
_HARMLESS_IF_BROKEN: Final = frozenset(("log", "goaway", "cancel", "credit", "ping", "pong"))


class Session:
    """One conversation between host and plugin, after the handshake.

    `peer` is the plugin's id on both sides: it names the conversation in error texts. `peer_limits` come from the
    peer's hello, `features` are the chosen ones. The owner runs `run` as a task; everything else may be called from
    the same event loop at any time.
    """

    def __init__(
        self,
        channel: FrameChannel,
        *,
        role: Literal["host", "plugin"],
        features: frozenset[str],
        peer: str,
        peer_limits: Limits,
        handler: CallHandler | None = None,
        on_log: Callable[[Log], None] | None = None,
        on_goaway: Callable[[Goaway], None] | None = None,
        on_stray: Callable[[bytes], None] | None = None,
        minimal: bool = False,
    ) -> None:
        self.peer: Final = peer
        self.features: Final[frozenset[str]] = frozenset() if minimal else features
        self._is_host: Final = role == "host"
        self._channel = channel
        channel.send_limit = peer_limits.max_frame_bytes
        self._link = Link(channel, peer=peer, features=self.features, on_broken=self._protocol_broken)
        self._loop = self._link.loop
        self._outgoing = OutgoingCalls(
            self._link, peer_origin="plugin" if self._is_host else "host", on_late=lambda: self._noise(LATE_S)
        )
        self._incoming = IncomingCalls(
            self._link,
            handler,
            parents=self._outgoing if self._is_host else None,
            with_lag=not self._is_host and "ping" in self.features,
        )
        self._on_log, self._on_goaway, self._on_stray = on_log, on_goaway, on_stray
        self._pings: dict[int, asyncio.Future[Pong | AbiError]] = {}
        self._last_ping_id = 0
        self._going_away: str | None = None
        self._last_received_s = self._loop.time()
        self._patience: Final = Patience(self._loop.time())
        self._cause: BaseException | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._routes: dict[type, Callable[[Any, int], None]] = {
            Result: self._outgoing.on_result,
            Item: self._outgoing.on_item,
            End: self._outgoing.on_end,
            Call: self._incoming.on_call,
            Cancel: self._incoming.on_cancel,
            Credit: self._incoming.on_credit,
            Ping: self._on_ping,
            Pong: self._on_pong,
            Log: self._on_log_frame,
            Goaway: self._on_goaway_frame,
            Hello: self._on_hello,
        }

    # -- for the owner

    async def run(self) -> BaseException | None:
        """Read until the channel closes; returns why (None: closed by this side). However it ends, also by a
        cancellation, everything pending fails at once."""
        try:
            self._channel.attach(self)
            await asyncio.shield(self._ended)
        finally:
            self._end("exit", "the session was stopped", None)
            self._channel.close(self._cause)
        return self._cause

    def start_call(
        self,
        method: str,
        params: Payload | bytes,
        *,
        timeout_ms: int | None = None,
        parent: int | None = None,
        stream: bool = False,
    ) -> OutgoingCall:
        """Send a call; `await call.reply()` waits for its answer.

        `params` as bytes are JSON made by `codec.encode_params`. `timeout_ms` runs from now until the `result`.
        `stream` says that the answer may open a stream. Raises PluginTransportError: phase unavailable when the
        session ended or goes away, body_size when the peer does not accept that much, overload when it does not read.
        """
        link = self._link
        if self._going_away is not None and self._is_host and method != "plugin.shutdown":
            raise link.error(method, "unavailable", f"going away: {self._going_away}")
        if link.ended is not None:
            link.check_open(method)
        raw: Any = params  # structs are encoded together with their frame, in one pass
        if isinstance(params, bytes):
            raw = Raw(params)
        else:
            link.check_body_size(params, method)
        frame = Call(
            id=self._outgoing.last_id + 1,
            method=method,
            params=raw,
            stream=stream,
            timeout_ms=timeout_ms,
            parent=parent,
        )
        try:
            self._channel.send(frame)
        except CHANNEL_FAULTS as fault:
            raise link.told(fault, method) from None
        return self._outgoing.add(frame)

    async def ping(self) -> Pong:
        """Wait for the peer's pong. Raises PluginTransportError when the session ends, ValueError without `ping`."""
        if "ping" not in self.features:
            raise ValueError("the peer did not offer the feature ping")
        self._link.check_open("ping")
        self._last_ping_id += 1
        ping_id = self._last_ping_id
        future = self._pings[ping_id] = self._loop.create_future()
        try:
            self._link.send(Ping(id=ping_id), "ping", control=True)
            answer: Pong | AbiError = await future
        finally:
            self._pings.pop(ping_id, None)
        if isinstance(answer, AbiError):
            raise answer
        return answer

    def goaway(self, reason: str, drain_ms: int) -> None:
        """No new calls from the host but `plugin.shutdown`; what runs, and its callbacks, go on."""
        if self._going_away is None:
            self._going_away = reason
        if "goaway" in self.features:
            self._link.send_quietly(Goaway(reason=reason, drain_ms=drain_ms))

    def log(self, frame: Log) -> None:
        """Send a log line to the host; dropped when the host does not keep up or the session ended."""
        try:
            self._channel.send(frame)
        except CHANNEL_FAULTS:
            pass

    async def close(self, cause: str = "the session was closed", *, phase: Phase = "exit") -> None:
        """End the session: what is pending fails with `cause`. Returns within a second; idempotent."""
        self._end(phase, cause, None)
        self._channel.close()
        try:
            async with asyncio.timeout(_CLOSE_FLUSH_S):
                await self._channel.wait_closed()
        except TimeoutError:
            self._channel.abort()

    @property
    def closed(self) -> bool:
        return self._link.ended is not None

    @property
    def takes_calls(self) -> bool:
        """Whether a call can be sent; a peer that reads nothing more is found out before the session ends by it."""
        return self._link.ended is None and self._channel.can_send

    @property
    def in_flight(self) -> int:
        """Calls of this side without a `result`, abandoned ones included until they count as stuck."""
        return len(self._outgoing.open) - len(self._outgoing.streams)

    @property
    def open_streams(self) -> int:
        """Streams that this side receives."""
        return len(self._outgoing.streams)

    @property
    def incoming(self) -> int:
        """Calls of the peer that are not closed."""
        return len(self._incoming.open)

    @property
    def stuck(self) -> int:
        """Cancelled calls past their grace that still have no closing frame."""
        return len(self._outgoing.stuck)

    @property
    def stuck_total(self) -> int:
        """How many calls ever were stuck."""
        return self._outgoing.stuck_total

    @property
    def last_received_s(self) -> float:
        """When the last frame came, on the loop's clock; now, while this side holds back its reading on purpose."""
        now_s = self._loop.time()
        if self._outgoing.reading_paused:
            return now_s
        return max(self._last_received_s, min(now_s, self._patience.until_s))

    # -- FrameReceiver

    def frame_received(self, frame: Frame, size: int) -> None:
        """See `FrameReceiver`."""
        self._last_received_s = self._loop.time()
        self._routes[type(frame)](frame, size)

    def frame_broken(self, broken: BrokenFrame) -> None:
        """Only the call that the frame belongs to fails; a frame that cannot be placed ends the session."""
        self._last_received_s = self._loop.time()
        self._noise(LINE_S)
        if broken.kind in _HARMLESS_IF_BROKEN:
            self.stray_received(f"unusable {broken.kind} frame: {broken.reason}".encode())
        elif broken.id is None or broken.kind == "hello":
            self._link.broken(f"an unusable {broken.kind} frame: {broken.reason}")
        elif broken.kind == "call":
            self._incoming.on_broken(broken.id, broken)
        else:
            self._outgoing.on_broken(broken.id, broken)

    def stray_received(self, line: bytes) -> None:
        """See `FrameReceiver`."""
        began_s = thread_time()
        if self._on_stray is not None:
            self._on_stray(line)
        self._noise(LINE_S + len(line) * BYTE_S + thread_time() - began_s)

    def _noise(self, cost_s: float) -> None:
        """Something came that nobody asked for; too much of it, and reading pauses for a moment (see `Patience`)."""
        if self._is_host and (pause_s := self._patience.spend(cost_s, self._loop.time())):
            self._channel.hold(pause_s)

    def channel_closed(self, cause: BaseException | None) -> None:
        """See `FrameReceiver`."""
        self._end("exit", str(cause) or type(cause).__name__, cause)

    # -- frames that belong to no call

    def _on_ping(self, frame: Ping, _: int) -> None:
        self._link.send_control(Pong(id=frame.id, loop_lag_ms=self._incoming.worst_lag_ms()))

    def _on_pong(self, frame: Pong, _: int) -> None:
        future = self._pings.pop(frame.id, None)
        if future is not None:
            if not future.done():
                future.set_result(frame)
        elif frame.id > self._last_ping_id:
            self._link.broken(f"a pong for ping {frame.id}, which was never sent")

    def _on_log_frame(self, frame: Log, size: int) -> None:
        began_s = thread_time()
        if self._on_log is not None:
            self._on_log(frame)
        self._noise(size * BYTE_S + thread_time() - began_s)

    def _on_goaway_frame(self, frame: Goaway, _: int) -> None:
        if self._going_away is None:
            self._going_away = frame.reason or "the peer goes away"
        if self._on_goaway is not None:
            self._on_goaway(frame)

    def _on_hello(self, frame: Hello, _: int) -> None:
        self._link.broken("a second hello")

    # -- the end

    def _protocol_broken(self, error: ProtocolError) -> None:
        self._end("decode", f"protocol error: {error}", error)
        self._channel.close(error)

    def _end(self, phase: Phase, reason: str, cause: BaseException | None) -> None:
        """Fail everything pending, once."""
        if self._link.ended is not None:
            return
        self._link.ended, self._cause = reason, cause
        self._channel.detach()
        self._outgoing.fail_all(phase, reason)
        for ping in self._pings.values():
            if not ping.done():
                ping.set_result(self._link.error("ping", phase, reason))
        self._incoming.cancel_all()
        if not self._ended.done():
            self._ended.set_result(None)

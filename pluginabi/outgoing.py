"""The calls this side made: their answers and streams, and what is left of them after a cancellation."""

from collections.abc import Callable
from typing import Any, Final

from msgspec import UNSET

from pluginabi.call import IncomingStream, OutgoingCall
from pluginabi.codec import BrokenFrame
from pluginabi.deadlines import Deadlines
from pluginabi.errors import ErrorBody, Origin, Phase, PluginError, normalised
from pluginabi.frames import Call, Cancel, End, Item, Result, Usage
from pluginabi.limits import CANCEL_GRACE_S
from pluginabi.link import Link


class OutgoingCalls:
    """Routes `result`, `item` and `end` frames. A closed call is forgotten, a stuck one waits for its late answer."""

    def __init__(self, link: Link, *, peer_origin: Origin, on_late: Callable[[], None]) -> None:
        self.link: Final = link
        self.loop: Final = link.loop
        self.open: Final[dict[int, OutgoingCall]] = {}
        self.streams: Final[dict[int, IncomingStream]] = {}
        self.stuck: Final[dict[int, OutgoingCall]] = {}
        self.stuck_total = 0
        self.last_id = 0
        self.reading_paused = False
        self._peer_origin: Origin = peer_origin
        self._on_late: Final = on_late
        self._deadlines = Deadlines(link.loop, self.open, self._time_is_up)

    def add(self, frame: Call) -> OutgoingCall:
        """A call whose frame was sent."""
        self.last_id = frame.id
        call = self.open[frame.id] = OutgoingCall(self, frame)
        if frame.timeout_ms is not None:
            self._deadlines.add(frame.id, frame.timeout_ms)
        if self.reading_paused:
            self.stream_was_read()
        return call

    def _time_is_up(self, call_id: int) -> None:
        self.open[call_id].time_is_up()

    # -- routing

    def on_result(self, frame: Result, _: int) -> None:
        """One `result`, opening or closing."""
        call = self.open.get(frame.id)
        if call is None:
            self._late(frame.id, frame.usage, closing=not (frame.ok and frame.stream))
        elif frame.id in self.streams:
            self._misbehaved(call, "a second result for an open stream")
        elif frame.ok and frame.stream:
            self._open_stream(call, frame)
        else:
            del self.open[frame.id]
            if frame.ok:
                call.answered(frame)
            else:
                call.ended(self._error(frame.error), frame.usage)

    def on_item(self, frame: Item, size: int) -> None:
        """One `item`."""
        stream = self.streams.get(frame.id)
        if stream is None:
            if self._is_unopened(frame.id):
                self.link.broken(f"an item of call {frame.id} before its opening result")
            else:
                self._on_late()
        elif not stream.push(frame, size):
            call = self.open[frame.id]
            call.abandon("client_gone", self.link.error(call.method, "stream", "more items than this side can hold"))

    def on_end(self, frame: End, _: int) -> None:
        """The `end` of a stream."""
        call = self.open.get(frame.id)
        if call is None:
            self._late(frame.id, frame.usage, closing=True)
        elif self._is_unopened(frame.id):
            self.link.broken(f"the end of call {frame.id} before its opening result")
        else:
            self._forget(call)
            call.ended(None if frame.ok else self._error(frame.error), frame.usage)

    def on_broken(self, call_id: int, broken: BrokenFrame) -> None:
        """A `result`, `item` or `end` that cannot be used: only its own call fails."""
        call = self.open.get(call_id)
        if call is None:
            self._late(call_id, None, closing=broken.kind != "item")
            return
        phase: Phase = "body_size" if broken.oversize else "decode"
        error = self.link.error(call.method, phase, f"unusable {broken.kind} frame: {broken.reason}")
        if broken.kind == "item":
            call.abandon("client_gone", error)
        else:
            self._forget(call)
            call.ended(error, None)

    def _open_stream(self, call: OutgoingCall, frame: Result) -> None:
        if not call.takes_stream:
            self._misbehaved(call, "a stream that was not asked for")
        elif not call.cancelled:
            self.streams[call.id] = stream = IncomingStream(self, call)
            call.opened(frame, stream)

    def _is_unopened(self, call_id: int) -> bool:
        call = self.open.get(call_id)
        if call is None:
            self._check_issued(call_id)
            return False
        return call_id not in self.streams and not call.cancelled

    def _late(self, call_id: int, usage: Usage | None, *, closing: bool) -> None:
        """A frame for a call we no longer wait for: dropped, but its slot may be free now."""
        self._check_issued(call_id)
        self._on_late()
        if closing and (call := self.stuck.pop(call_id, None)) is not None:
            call.ended(None, usage)

    def _check_issued(self, call_id: int) -> None:
        if call_id > self.last_id:
            self.link.broken(f"an answer to call {call_id}, which was never made")

    def _misbehaved(self, call: OutgoingCall, what: str) -> None:
        call.abandon("client_gone", self.link.error(call.method, "decode", what))

    def _error(self, error: Any) -> PluginError:
        body = ErrorBody() if error is UNSET else error
        return PluginError(normalised(body, default_origin=self._peer_origin))

    # -- for calls

    def knows(self, call: OutgoingCall) -> bool:
        """Whether the callee still owes a closing frame."""
        return self.open.get(call.id) is call or self.stuck.get(call.id) is call

    def send_cancel(self, call: OutgoingCall, frame: Cancel) -> None:
        """Tell the callee, and give it 2 s for its closing frame; a call that never left is forgotten."""
        if self.link.channel.withdraw(call.id):
            self._forget(call)
            call.release()
            return
        call.end_children()
        if "cancel" in self.link.features:
            self.link.send_quietly(frame, control=True)
            self.loop.call_later(CANCEL_GRACE_S, self._grace_is_over, call)

    def _grace_is_over(self, call: OutgoingCall) -> None:
        if self.open.get(call.id) is call:
            self._forget(call)
            self.stuck[call.id] = call
            self.stuck_total += 1

    def _forget(self, call: OutgoingCall) -> None:
        self.open.pop(call.id, None)
        self.streams.pop(call.id, None)
        if self.reading_paused:
            self.stream_was_read()

    # -- back-pressure on a producer without credit

    @property
    def is_only_call(self) -> bool:
        """With one call in flight the carrier itself may push back; with several that would hold up the others."""
        return len(self.open) == 1

    def stream_is_full(self) -> None:
        """A stream holds a window's worth."""
        if self.is_only_call and not self.reading_paused:
            self.reading_paused = True
            self.link.channel.pause_reading()

    def stream_was_read(self) -> None:
        """A stream may have room again, or there is no longer a single call."""
        if not self.reading_paused:
            return
        if self.is_only_call and any(stream.is_full for stream in self.streams.values()):
            return
        self.reading_paused = False
        self.link.channel.resume_reading()

    # -- the end

    def fail_all(self, phase: Phase, reason: str) -> None:
        """The session ended: whoever waits is told at once."""
        calls = [*self.open.values(), *self.stuck.values()]
        self._deadlines.stop()
        self.open.clear()
        self.stuck.clear()
        self.streams.clear()
        for call in calls:
            call.ended(self.link.error(call.method, phase, reason), None)

"""Watches every frame of a conversation and notes what the contract does not allow.

A violation belongs to a check; the check fails however the rest of the run went.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET

from pluginabi.codec import BrokenFrame, Stray
from pluginabi.credit import Window
from pluginabi.errors import ErrorBody
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
from pluginabi.limits import DEFAULT_MAX_FRAME_BYTES
from pluginabi.methods import HOST_METHODS
from pluginapi.conformance.outcome import shown
from pluginapi.conformance.wire import Arrival

Violate: TypeAlias = Callable[[str, str, str], None]
"""`violate(check_id, expected, got)`."""

CLOSED_ONCE: Final = "calls.closed_once"
KNOWN_IDS: Final = "calls.known_ids"
CREDIT: Final = "streams.credit"
ERRORS: Final = "errors.well_formed"
KINDS: Final = "frames.kinds"
ORDER: Final = "streams.order"
SIZE: Final = "frames.size"
STDOUT: Final = "stdout.clean"
VALID: Final = "frames.valid"
CALLBACKS: Final = "callbacks.well_formed"
KEPT_ITEMS: Final = 1000


class Probe:
    """One call of the kit and what came back."""

    def __init__(self, call: Call) -> None:
        self.id: Final = call.id
        self.method: Final = call.method
        self.may_stream: Final = call.stream
        self.opening: Result | None = None
        self.closing: Result | End | None = None
        self.items = 0
        self.bytes = 0
        self.bodies = 0
        self.raws = 0
        self.kept: Final[list[Item]] = []
        """The first items themselves."""
        self.window: Final = Window()
        self.consumes = True
        """Whether the kit gives credit for every item as it comes."""

    @property
    def closed(self) -> bool:
        return self.closing is not None

    @property
    def opened(self) -> bool:
        return self.opening is not None

    @property
    def result(self) -> Result | None:
        """The good result it was answered or its stream was opened with."""
        if self.opening is not None:
            return self.opening
        return self.closing if isinstance(self.closing, Result) and self.closing.ok else None

    @property
    def window_is_used_up(self) -> bool:
        return not self.window.is_open

    @property
    def error(self) -> ErrorBody | None:
        """The error it was closed with."""
        return None if self.closing is None or self.closing.error is UNSET else self.closing.error

    def told(self) -> str:
        """What came so far, for people."""
        if self.closing is None:
            return f"an open stream with {self.items} items" if self.opened else "no answer"
        error = self.error
        if error is not None:
            return f"error {error.http_status} {error.code}: {error.message}"
        if isinstance(self.closing, End):
            return f"a stream of {self.items} items"
        return "null" if self.closing.result is UNSET else shown(bytes(self.closing.result))


class Ledger:
    """The kit's side of one conversation: its calls by id, and what the plugin may send at each moment."""

    def __init__(self, features: frozenset[str], violate: Violate, *, typed: bool) -> None:
        """`typed`: the carrier checks the types of fields itself (gRPC)."""
        self.probes: Final[dict[int, Probe]] = {}
        self.pongs: Final[set[int]] = set()
        self.pings_sent = 0
        self.going_away: str | None = None
        self._features = features
        self._violate = violate
        self._typed = typed
        self._last_callback_id = 0
        self._routes: Final[dict[type, Callable[[Any, int], None]]] = {
            Result: self._result,
            Item: self._item,
            End: self._end,
            Call: self._callback,
            Pong: self._pong,
            Cancel: self._about_callback,
            Credit: self._about_callback,
            Log: self._nothing,
            Goaway: self._goaway,
            Hello: self._unexpected,
            Ping: self._unexpected,
        }

    def arrived(self, arrival: Arrival) -> None:
        """Judge one arrival."""
        what = arrival.what
        if isinstance(what, Stray):
            stray(arrival, self._violate)
        elif isinstance(what, BrokenFrame):
            self._broken(what, arrival)
        else:
            if arrival.size > DEFAULT_MAX_FRAME_BYTES:
                self._violate(
                    SIZE, f"frames of at most {DEFAULT_MAX_FRAME_BYTES} bytes", f"{_kind(what)} of {arrival.size}"
                )
            self._routes[type(what)](what, arrival.size)

    def _broken(self, what: BrokenFrame, arrival: Arrival) -> None:
        if what.oversize:
            self._violate(SIZE, f"frames of at most {DEFAULT_MAX_FRAME_BYTES} bytes", f"{what.kind}: {what.reason}")
        problem = None if self._typed else error_problem(arrival.raw)
        if problem is not None:
            self._violate(ERRORS, *problem)
        elif not what.oversize:
            got = f"{what.reason}: {shown(arrival.raw)}" if arrival.raw else what.reason
            self._violate(VALID, f"a {what.kind} frame with the fields of the contract", got)
        probe = self.probes.get(what.id or 0)
        if probe is not None and what.kind in ("result", "end") and not probe.closed:
            # Whoever waits for it need not wait until the timeout: the plugin did answer.
            broken = ErrorBody(message=f"an unusable {what.kind} frame: {what.reason}", code="plugin_protocol_error")
            probe.closing = Result(id=probe.id, ok=False, error=broken)

    def _known(self, frame: Result | Item | End) -> Probe | None:
        probe = self.probes.get(frame.id)
        if probe is None:
            self._violate(KNOWN_IDS, "frames only for calls that were made", f"{_kind(frame)} for id {frame.id}")
            return None
        if probe.closed:
            self._violate(
                CLOSED_ONCE,
                "nothing more for a call after its closing frame",
                f"{_kind(frame)} for {probe.method} (id {frame.id})",
            )
            return None
        return probe

    def _result(self, frame: Result, _: int) -> None:
        probe = self._known(frame)
        if probe is None:
            return
        self._check_outcome(frame, probe)
        if not frame.stream:
            if probe.opened:
                self._violate(ORDER, "an `end` after the items of a stream", f"a second result for {probe.method}")
            probe.closing = frame
        elif probe.opened:
            self._violate(CLOSED_ONCE, "one opening result for a stream", f"a second one for {probe.method}")
        else:
            if not probe.may_stream:
                self._violate(ORDER, "a stream only where the call said `stream`", f"one for {probe.method} without it")
            if not frame.ok:
                self._violate(ORDER, "`stream` only with `ok`", f"an error that opens a stream for {probe.method}")
            probe.opening = frame

    def _item(self, frame: Item, size: int) -> None:
        probe = self._known(frame)
        if probe is None:
            return
        if not probe.opened:
            self._violate(ORDER, "an opening result before the first item", f"an item for {probe.method}")
        if "credit" in self._features and not probe.window.is_open:
            window = probe.window
            self._violate(
                CREDIT,
                "no item while the credit of the stream is used up",
                f"item {probe.items + 1} of {probe.method} at a credit of {window.items} items, {window.bytes} bytes",
            )
        if probe.items < KEPT_ITEMS:
            probe.kept.append(frame)
        probe.items += 1
        probe.bytes += size
        probe.bodies += frame.body is not UNSET
        probe.raws += frame.raw is not UNSET
        if probe.bodies and probe.raws:
            self._violate(ORDER, "a stream of events or of raw data", f"both, for {probe.method}")
        probe.window.spend(size)

    def _end(self, frame: End, _: int) -> None:
        probe = self._known(frame)
        if probe is None:
            return
        if not probe.opened:
            self._violate(ORDER, "an `end` only for an open stream", f"one for {probe.method}")
        self._check_outcome(frame, probe)
        probe.closing = frame

    def _check_outcome(self, frame: Result | End, probe: Probe) -> None:
        if frame.ok:
            if frame.error is not UNSET:
                self._violate(ERRORS, "no error beside `ok: true`", f"one for {probe.method}")
            return
        if frame.error is UNSET:
            self._violate(ERRORS, "an `error` object beside `ok: false`", f"none for {probe.method}")
            return
        error = frame.error
        if not error.message.strip():
            self._violate(ERRORS, "a message in every error", f"none in the one for {probe.method}")
        if not error.code.strip():
            self._violate(ERRORS, "a code that is not blank", f"a blank one for {probe.method}")
        if not 400 <= error.http_status <= 599:
            self._violate(ERRORS, "an http_status from 400 to 599", f"{error.http_status} for {probe.method}")

    def _callback(self, frame: Call, _: int) -> None:
        if frame.id <= self._last_callback_id:
            self._violate(CALLBACKS, "ids that grow and are never used again", f"id {frame.id} for {frame.method}")
        self._last_callback_id = max(self._last_callback_id, frame.id)
        if frame.method not in HOST_METHODS:
            self._violate(CALLBACKS, "methods of the host", f"a call of {frame.method}")
        if frame.parent is not None and frame.parent not in self.probes:
            self._violate(CALLBACKS, "a parent that is a call of the host", f"{frame.parent} for {frame.method}")
        if frame.stream and "callback_streams" not in self._features:
            self._violate(CALLBACKS, "no stream asked of a host without the feature callback_streams", frame.method)

    def _about_callback(self, frame: Cancel | Credit, _: int) -> None:
        if frame.id > self._last_callback_id:
            self._violate(CALLBACKS, f"{_kind(frame)} frames only for own calls", f"one for id {frame.id}")

    def _pong(self, frame: Pong, _: int) -> None:
        if frame.id in self.pongs or not 0 < frame.id <= self.pings_sent:
            self._violate(KINDS, "one pong for each ping", f"a pong for {frame.id}")
        self.pongs.add(frame.id)

    def _goaway(self, frame: Goaway, _: int) -> None:
        self.going_away = frame.reason or "no reason given"
        if "goaway" not in self._features:
            self._violate(KINDS, "no goaway without the feature", "one")

    def _nothing(self, frame: Frame, _: int) -> None:
        """Always allowed."""

    def _unexpected(self, frame: Frame, _: int) -> None:
        what = "a second hello" if isinstance(frame, Hello) else f"a {_kind(frame)}"
        self._violate(KINDS, "only frames that a plugin may send", what)


def stray(arrival: Arrival, violate: Violate) -> None:
    """Note output that is no frame."""
    text = arrival.raw or (arrival.what.text if isinstance(arrival.what, Stray) else b"")
    violate(STDOUT, "nothing but frames on stdout", f"the line {shown(text)!r}")


def error_problem(line: bytes) -> tuple[str, str] | None:
    """What is wrong with the error object of a line that does not decode as a frame; None when that is fine."""
    try:
        frame = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(frame, dict) or frame.get("kind") not in ("result", "end") or "error" not in frame:
        return None
    error = frame["error"]
    if not isinstance(error, dict):
        return "an `error` that is an object", shown(error)
    try:
        msgspec.convert(error, ErrorBody)
    except msgspec.ValidationError as problem:
        return "an `error` object with fields of the right types", f"{problem} in {shown(error)}"
    return None


def _kind(frame: Frame) -> str:
    return type(frame).__name__.lower()

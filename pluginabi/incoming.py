"""The calls of the peer: handing them out, answering them, and their streams."""

from typing import Any, Final, cast

from msgspec import UNSET

from pluginabi.budget import CallbackBudget
from pluginabi.call import IncomingCall, OutgoingCall
from pluginabi.codec import BrokenFrame
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError, host_error
from pluginabi.frames import Call, Cancel, Credit, End, Item, Result
from pluginabi.lag import LagMeter
from pluginabi.link import Link
from pluginabi.outgoing import OutgoingCalls

_ERROR_TEXT_MAX_CHARS: Final = 1000
_ERROR_CODE_MAX_CHARS: Final = 100


class IncomingCalls:
    """Routes `call`, `cancel` and `credit` frames. On the host side a call may belong to a call of the host."""

    def __init__(self, link: Link, handler: Any, *, parents: OutgoingCalls | None, with_lag: bool) -> None:
        self.link: Final = link
        self.loop: Final = link.loop
        self.open: Final[dict[int, IncomingCall]] = {}
        self.last_id = 0
        self.may_stream: Final = parents is None or "callback_streams" in link.features
        self._handler = handler
        self._parents = parents
        self._budget = CallbackBudget(link.loop, handler) if parents is not None and handler is not None else None
        self._lag = LagMeter(link.loop, self.is_busy) if with_lag else None

    def is_busy(self) -> bool:
        """Whether calls of the peer are open."""
        return bool(self.open)

    def worst_lag_ms(self) -> float:
        """The worst lag of the event loop since this was last asked; 0 when nobody measures."""
        return self._lag.worst_ms() if self._lag is not None else 0.0

    # -- routing

    def on_call(self, frame: Call, _: int) -> None:
        """A new call: hand it out, or refuse it."""
        if not self._is_next(frame.id):
            return
        parent: OutgoingCall | None = None
        if self._parents is not None and frame.parent is not None:
            if frame.parent > self._parents.last_id:
                self.link.broken(f"a callback on behalf of call {frame.parent}, which was never made")
                return
            parent = self._parents.open.get(frame.parent)
            if parent is None or parent.cancelled:
                self._refuse(frame.id, host_error("parent_closed", f"call {frame.parent} has finished"))
                return
        if self._handler is None:
            self._refuse(frame.id, host_error("method_not_found", f"nobody answers {frame.method} here"))
            return
        call = self.open[frame.id] = IncomingCall(self, frame, parent)
        if parent is not None:
            parent.children = parent.children or {}
            parent.children[call.id] = call
        if self._lag is not None:
            self._lag.work_began()
        if self._budget is None:
            self._handler(call)
        else:
            self._budget.admit(call)

    def on_broken(self, call_id: int, broken: BrokenFrame) -> None:
        """A `call` that cannot be used: answered with an error."""
        if self._is_next(call_id):
            code = "plugin_body_too_large" if broken.oversize else "plugin_protocol_error"
            self._refuse(call_id, host_error(code, f"unusable call frame: {broken.reason}"))

    def on_cancel(self, frame: Cancel, _: int) -> None:
        """The caller gave up; ignored for a call that is closed or unknown."""
        if (call := self.open.get(frame.id)) is not None:
            call.cancel_from_caller(cast(Any, frame.reason))

    def on_credit(self, frame: Credit, _: int) -> None:
        """The caller consumed items; late credit for a closed stream is dropped."""
        call = self.open.get(frame.id)
        if call is None:
            if frame.id > self.last_id:
                self.link.broken(f"credit for call {frame.id}, which was never made")
        elif call.outgoing is not None:
            call.outgoing.grant(frame.items, frame.bytes)

    def _is_next(self, call_id: int) -> bool:
        if call_id <= self.last_id:
            self.link.broken(f"call id {call_id} after {self.last_id}: ids only grow")
            return False
        self.last_id = call_id
        return True

    def _refuse(self, call_id: int, error: PluginError) -> None:
        self.link.send_quietly(Result(id=call_id, ok=False, error=error.body))

    # -- for calls

    def send_result(self, call: IncomingCall, frame: Result, payload: Any) -> None:
        """The closing frame of a call; an answer too large for the peer becomes an error."""
        try:
            self.link.send(frame, call.method, payload, closing=True)
        except PluginTransportError as error:
            if error.phase == "body_size":
                smaller = _shrunk(frame.error, error)
                self.link.send_quietly(Result(id=call.id, ok=False, error=smaller, usage=frame.usage))
        # Not before: what cannot be encoded raises above, and the call can still be closed with an error.
        self._close(call)

    def send_opening(self, call: IncomingCall, frame: Result, payload: Any) -> None:
        """The `result` that opens a stream. Raises PluginTransportError."""
        self.link.check_open(call.method)
        self.link.send(frame, call.method, payload, closing=True)
        self._answered(call)

    def send_item(self, call: IncomingCall, frame: Item) -> int:
        """Returns the item's cost in credit. Raises PluginTransportError."""
        return self.link.send(frame, call.method, frame)

    def send_end(self, call: IncomingCall, frame: End) -> None:
        """The closing frame of a stream."""
        try:
            self.link.send(frame, call.method, closing=True)
        except PluginTransportError as error:
            if error.phase == "body_size":
                self.link.send_quietly(End(id=call.id, ok=False, error=_shrunk(frame.error, error), usage=frame.usage))
        self._close(call)

    def _answered(self, call: IncomingCall) -> None:
        if self._budget is not None:
            self._budget.release(call)

    def _close(self, call: IncomingCall) -> None:
        call.close()
        self.open.pop(call.id, None)
        if call.parent_call is not None and call.parent_call.children is not None:
            call.parent_call.children.pop(call.id, None)
        self._answered(call)

    # -- the end

    def cancel_all(self) -> None:
        """The session ended: nobody waits for these answers."""
        if self._budget is not None:
            self._budget.stop()
        if self._lag is not None:
            self._lag.stop()
        for call in [*self.open.values()]:
            call.cancel_from_caller("shutdown")


def _shrunk(error: Any, fault: PluginTransportError) -> ErrorBody:
    """What an answer too large for the peer becomes: an error keeps its status, its code and how it may be retried."""
    if error is UNSET:
        return fault.to_error_body()
    return ErrorBody(
        message=error.message[:_ERROR_TEXT_MAX_CHARS],
        code=error.code[:_ERROR_CODE_MAX_CHARS],
        http_status=error.http_status,
        retryable=error.retryable,
        retry_after_ms=error.retry_after_ms,
        scope=error.scope,
        origin=error.origin,
    )

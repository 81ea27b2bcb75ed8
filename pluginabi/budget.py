"""How many callbacks of one plugin run at once. Their own budget: shared with calls it would deadlock."""

import asyncio
from collections import deque
from collections.abc import Callable

from pluginabi.call import IncomingCall
from pluginabi.errors import host_error
from pluginabi.limits import CALLBACK_MAX_INFLIGHT, QUEUE_MAX_CALLS, QUEUE_MAX_WAIT_S


class CallbackBudget:
    """Runs up to `CALLBACK_MAX_INFLIGHT` callbacks until their `result`; lets 256 more wait for up to 5 s.

    What finds no place is answered `plugin_overloaded`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, handler: Callable[[IncomingCall], None]) -> None:
        self._loop = loop
        self._handler = handler
        self._running: set[int] = set()
        self._waiting: deque[IncomingCall] = deque()
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def admit(self, call: IncomingCall) -> None:
        """Hand `call` to the handler, now or when there is room."""
        if len(self._running) < CALLBACK_MAX_INFLIGHT:
            self._running.add(call.id)
            self._handler(call)
        elif len(self._timers) < QUEUE_MAX_CALLS:
            self._waiting.append(call)
            self._timers[call.id] = self._loop.call_later(QUEUE_MAX_WAIT_S, self._refuse, call)
            call.on_cancel(lambda reason: self._cancelled(call, reason))
        else:
            self._refuse(call)

    def release(self, call: IncomingCall) -> None:
        """`call` was answered; the next one may run."""
        if (timer := self._timers.pop(call.id, None)) is not None:
            timer.cancel()
        if call.id not in self._running:
            return
        self._running.discard(call.id)
        while self._waiting and len(self._running) < CALLBACK_MAX_INFLIGHT:
            following = self._waiting.popleft()
            if following.closed:
                continue
            self._timers.pop(following.id).cancel()
            self._running.add(following.id)
            self._handler(following)

    def stop(self) -> None:
        """The session ended: nothing that waits will run."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()

    def _refuse(self, call: IncomingCall) -> None:
        limit = f"{CALLBACK_MAX_INFLIGHT} callbacks run already"
        call.fail(host_error("plugin_overloaded", limit, retry_after_ms=1000).body)

    def _cancelled(self, call: IncomingCall, reason: str) -> None:
        if call.id in self._timers:
            call.fail(host_error("cancelled", f"the call was cancelled: {reason}").body)

"""Callbacks of a replayed plugin: answered from the recording, never from the world."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from host.recording.compare import ABSENT, Difference
from host.recording.format import Callback
from host.recording.redact import Redactor
from host.runtime.callback_http import HttpCallbacks
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks, Opening, Unary
from host.runtime.handle import ItemStream
from host.runtime.scope import CallScope
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from host.upstream import UpstreamClient
from pluginabi.body import StreamItem
from pluginabi.codec import decode_result
from pluginabi.errors import ErrorBody, PluginError, host_error
from pluginabi.frames import Usage
from pluginabi.payloads.common import Payload


class RecordedCallbacks(HostCallbacks):
    """Answers the callbacks of the call that `expect` named with what they came to when it was recorded."""

    def __init__(self, client: UpstreamClient, redactor: Redactor, tasks: TaskGroup) -> None:
        super().__init__(http=HttpCallbacks(client), kv=KvCallbacks(MemoryStore()), tasks=tasks)
        self._redactor: Final = redactor
        self._left: list[Callback] = []
        self.differences: list[Difference] = []

    def expect(self, callbacks: Sequence[Callback]) -> None:
        """The next call made these."""
        self._left = list(callbacks)
        self.differences = []

    def finish(self) -> list[Difference]:
        """The call is over: what it asked otherwise than when it was recorded."""
        for callback in self._left:
            self.differences.append(
                Difference(at=f"/callbacks/{callback.method}", recorded=callback.params, now=ABSENT)
            )
        self._left = []
        return self.differences

    def unary(self, scope: CallScope, method: str) -> Unary:
        """From the recording, when the plugin may ask this at all."""
        super().unary(scope, method)

        async def serve(scope: CallScope, params: Any) -> Payload:
            return self._answer(method, self._find(method, params), scope)

        return serve

    def opening(self, scope: CallScope, method: str) -> Opening:
        """From the recording, when the plugin may ask this at all."""
        super().opening(scope, method)

        async def serve(scope: CallScope, params: Any) -> tuple[Payload, ItemStream]:
            found = self._find(method, params)
            return self._answer(method, found, scope), _RecordedItems(found)

        return serve

    def _find(self, method: str, params: Any) -> Callback:
        """The recorded callback with these params; else the next one to that method, which is a difference."""
        plain = self._redactor.plain(msgspec.json.encode(params))
        candidates = [callback for callback in self._left if callback.method == method]
        if not candidates:
            self.differences.append(Difference(at=f"/callbacks/{method}", recorded=ABSENT, now=plain))
            raise host_error("method_not_found", f"{method}: the recording has no answer to this")
        found = next((callback for callback in candidates if callback.params == plain), candidates[0])
        if found.params != plain:
            self.differences.append(Difference(at=f"/callbacks/{method}", recorded=found.params, now=plain))
        self._left.remove(found)
        return found

    def _answer(self, method: str, found: Callback, scope: CallScope) -> Payload:
        if found.error is not None and found.items is None:
            raise PluginError(msgspec.convert(found.error, ErrorBody))
        encoded = Raw(msgspec.json.encode(found.answer))
        answer: Payload = decode_result(method, encoded, plugin_id=scope.plugin_id)
        return answer


class _RecordedItems:
    """A recorded stream; one that was cut ends where the recording does."""

    def __init__(self, found: Callback) -> None:
        self.usage: Usage | None = msgspec.convert(found.usage, Usage | None)
        self._found: Final = found

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for item in self._found.items or ():
            yield msgspec.json.decode(msgspec.json.encode(item), type=StreamItem)
        if self._found.error is not None:
            raise PluginError(msgspec.convert(self._found.error, ErrorBody))

    async def aclose(self, reason: str = "client_gone") -> None:
        """Nothing to stop."""

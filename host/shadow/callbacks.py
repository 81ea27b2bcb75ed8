"""What a shadow may ask of the host: to read the store. Whatever would have an effect is refused."""

from collections.abc import Mapping
from typing import Final

from host.runtime.callbacks import HostCallbacks
from host.runtime.handle import ItemStream
from host.runtime.refusals import Refusals
from host.runtime.scope import CallScope
from pluginabi.errors import PluginError, host_error
from pluginabi.frames import Log
from pluginabi.payloads.common import Payload

READS: Final = frozenset({"host.kv.get"})
PERMISSIONS: Final = frozenset({"kv", "client_credentials", "credential_secrets"})
"""Of what the operator granted, this is left to a shadow: what decides how its calls look, and reading the store."""


class ShadowCallbacks:
    """The `CallbackServer` of shadow processes. `refusals` counts what they asked for in vain."""

    def __init__(self, inner: HostCallbacks) -> None:
        self._inner: Final = inner
        self.refusals: Final = Refusals()

    async def call(self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None) -> Payload:
        """As `CallbackServer.call`."""
        if method not in READS:
            raise self._refused(scope, method)
        return await self._inner.call(scope, method, params, timeout_s=timeout_s)

    async def open_stream(
        self, scope: CallScope, method: str, params: Payload, *, timeout_s: float | None = None
    ) -> tuple[Payload, ItemStream]:
        """As `CallbackServer.open_stream`."""
        raise self._refused(scope, method)

    def log(self, plugin_id: str, frame: Log, scope: CallScope | None) -> None:
        """Its lines are the plugin's, marked."""
        self._inner.write_log(plugin_id, frame.level, frame.event, {**frame.fields, "shadow": True}, None)

    def asked_in_vain(self, plugin_id: str) -> Mapping[str, int]:
        """Callbacks that were refused; what the kernel refused its process is in the log."""
        return {what: count for what, count in self.refusals.of(plugin_id).items() if what.startswith("host.")}

    def _refused(self, scope: CallScope, method: str) -> PluginError:
        self.refusals.note(scope.plugin_id, method)
        return host_error("permission_denied", f"{method}: a shadow's calls have no effect, so it may only read")

"""What a call to a plugin belongs to: the client request, its nesting, and who must be skipped."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct, field

from pluginabi.errors import PluginError
from pluginabi.immutable import EMPTY_HEADERS, Headers
from pluginabi.limits import MAX_NESTED_CALLS_PER_REQUEST


class NestedBudget(Struct):
    """Counts nested model calls of one client request, all depths together."""

    remaining: int = MAX_NESTED_CALLS_PER_REQUEST


class HookTally(Struct):
    """Calls of one hook of one request that are too many to be written down one by one."""

    calls: int = 0
    duration_s: float = 0.0
    items_in: int = 0
    items_out: int = 0
    changed: int = 0
    """Batches of which something else came out than went in."""


class RequestScope(Struct, kw_only=True, eq=False):
    """One execution through the pipeline: a client request, or a nested call made by a plugin.

    Mutable on purpose where the pipeline learns things (`attempt`); everything a plugin sees is built from it anew.
    """

    request_id: str
    parent: "RequestScope | None" = None
    depth: int = 0
    skip: frozenset[str] = frozenset()
    """Plugins whose routers, interceptors and lifecycle hooks are left out: the callers along the parent chain."""
    budget: NestedBudget = field(default_factory=NestedBudget)
    attempt: int | None = None
    inbound_headers: Headers = EMPTY_HEADERS
    inbound_query: Headers = EMPTY_HEADERS
    principal: Any = None
    """`host.pipeline.request.Principal`; opaque to the runtime, inherited by nested calls."""
    state: Any = None
    """The gateway state this request started with; nested calls use the same."""
    record: Callable[..., None] | None = None
    """Appends one decision to the trace: `record("route", plugin_id=…, …)`. None when tracing is off."""
    mask: Callable[[PluginError], PluginError] | None = None
    """Takes the secrets of the credential that the request uses now out of an error, before it is written down."""
    times_s: dict[str, float] | None = None
    """Plugin -> what its calls took so far, for the client's own request only; None when nobody asks."""
    tallies: dict[tuple[str, str], HookTally] | None = None
    """(plugin, method) -> the calls that `record` is not told of one by one; None before the first."""

    def tally(self, plugin_id: str, method: str) -> HookTally:
        """The tally of one hook."""
        if self.tallies is None:
            self.tallies = {}
        found = self.tallies.get((plugin_id, method))
        if found is None:
            found = self.tallies[plugin_id, method] = HookTally()
        return found

    @property
    def parent_request_id(self) -> str | None:
        return self.parent.request_id if self.parent is not None else None


class CallScope(Struct, kw_only=True, eq=False):
    """One call of the host to one plugin; callbacks of the plugin are served under it and end with it."""

    plugin_id: str
    method: str
    permissions: frozenset[str] = frozenset()
    request: RequestScope | None = None
    """None for calls outside of a request (register, usage, model lists)."""
    deadline_s: float | None = None
    """Monotonic; a callback gets the smaller of its own deadline and this, until the call's `result`."""
    closed: bool = False
    on_close: list[Callable[[], None]] = field(default_factory=list)
    """Cancels open callbacks; called in order by `close`."""

    def nested(self, request_id: str) -> RequestScope:
        """The scope of a model call that the called plugin makes: one deeper, without that plugin's own hooks.

        It shares budget, principal and state with its parent; call it once per nested call.
        """
        parent = self.request
        if parent is None:
            return RequestScope(request_id=request_id, depth=1, skip=frozenset({self.plugin_id}))
        return RequestScope(
            request_id=request_id,
            parent=parent,
            depth=parent.depth + 1,
            skip=parent.skip | {self.plugin_id},
            budget=parent.budget,
            inbound_headers=parent.inbound_headers,
            inbound_query=parent.inbound_query,
            principal=parent.principal,
            state=parent.state,
            record=parent.record,
        )

    def close(self) -> None:
        """End the scope: later callbacks get `parent_closed`, open ones are cancelled."""
        if not self.closed:
            self.closed = True
            if self.on_close:
                for callback in self.on_close:
                    callback()
                self.on_close.clear()

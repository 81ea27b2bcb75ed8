"""One execution on its way through the pipeline: a client request, or a nested call of a plugin."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from host.observe.trace import RequestTrace
from host.pipeline.metadata import base_metadata, full_metadata
from host.pipeline.patch import model_of
from host.pipeline.request import ClientRequest, ClientResponse
from host.pipeline.state import GatewayState, Lane
from host.runtime.handle import Binding, Inputs
from host.runtime.projection import body_parts, select_body, visible_headers, visible_query
from host.runtime.scope import RequestScope
from pluginabi.body import EMPTY_BODY, Body
from pluginabi.immutable import EMPTY_HEADERS, Headers, Metadata


class Terminated(Exception):
    """An interceptor ended the request with its own response. Not an error: the client gets `response` as it is."""

    def __init__(self, response: ClientResponse, *, plugin_id: str) -> None:
        super().__init__(f"terminated by plugin {plugin_id!r}")
        self.response = response
        self.plugin_id = plugin_id


class Content:
    """A request or response body: its bytes; what a plugin sees and the model it names, found when first asked for."""

    __slots__ = ("_body", "_is_json", "_model", "data")

    def __init__(
        self,
        data: bytes = b"",
        *,
        body: Body | None = None,
        is_json: bool = False,
        model: str | UnsetType | None = UNSET,
    ) -> None:
        """From bytes or from a body. `is_json`: known to be; `model`: known to be named."""
        self.data = data if body is None else body.to_bytes()
        # In whatever form one plugin answered, the next one sees JSON as JSON.
        self._body = body if body is not None and body.json is not UNSET else None
        self._is_json = is_json
        self._model = model

    @property
    def body(self) -> Body:
        if self._body is None:
            data = self.data
            if not data:
                self._body = EMPTY_BODY
            else:
                self._body = Body(json=Raw(data)) if self._is_json else Body.from_bytes(data)
        return self._body

    @property
    def model(self) -> str | None:
        """The top-level `model`; None when there is none."""
        if self._model is UNSET:
            self._model = model_of(self.data)
        return self._model


class BoundSession(Struct, frozen=True):
    """The session of a request: where its name comes from, and the keys under which its credential is remembered."""

    source: str
    key: str
    fallback: str = ""

    @property
    def shown(self) -> str:
        """Enough of the key to tell sessions apart."""
        return self.key[:8]


class Execution(Struct, kw_only=True, eq=False):
    """What has been decided so far. The client's request itself never changes; `content` and `headers` are current."""

    request: ClientRequest
    state: GatewayState
    scope: RequestScope
    method: str
    """The executor method that serves it."""
    wanted: str
    """Protocol of the answer: the client's, unless a nested call asked for another."""
    model: str
    """The model to resolve: the client's, until an interceptor changed it."""
    content: Content
    client_content: Content
    headers: Headers
    query: Headers
    trace: RequestTrace | None = None
    nested: bool = False
    started_s: float = 0.0
    """Monotonic."""
    started_at_s: float = 0.0
    """Wall clock."""
    attempts: int = 0
    last_attempt: "Attempt | None" = None
    prepared: bool = False
    """Routed and through the before-interceptors; a bootstrap retry starts after that."""
    route: Any = None
    """`host.pipeline.route.Route` or None."""
    unavailable: str = ""
    """A plugin that a router chose and that does not run right now."""
    response_headers: dict[str, Sequence[str]] | None = None
    """What interceptors of the request add to the client's answer."""
    session: BoundSession | None = None
    owner: str = ""
    """The only credential that may serve it: it made what the request refers to."""
    preferred: str = ""
    """The same as a wish."""
    settled: bool = False
    _base: dict[str, Any] | None = None
    _full: Metadata | None = None
    _shown: tuple[Headers, Headers] | None = None
    """Headers, and the same without secrets."""

    @property
    def source(self) -> str:
        """The protocol the client speaks."""
        return self.request.protocol

    @property
    def base_metadata(self) -> dict[str, Any]:
        """What is known before routing."""
        if self._base is None:
            self._base = base_metadata(self.request, nested=self.nested)
        return self._base

    @property
    def metadata(self) -> Metadata:
        """What is known from routing on."""
        if self._full is None:
            self._full = full_metadata(self.base_metadata, self.request, self.client_content.data)
        return self._full

    def visible_headers(self, headers: Headers, binding: Binding) -> Headers:
        """`headers` as this plugin may see them; worked out once for all plugins that get the same."""
        if "client_credentials" in binding.permissions:
            return headers
        shown = self._shown
        if shown is None or shown[0] is not headers:
            shown = self._shown = (headers, visible_headers(headers, False))
        return shown[1]

    def record(self, kind: str, /, **fields: Any) -> None:
        """Append a decision to the trace, when there is one."""
        if self.trace is not None:
            self.trace.record(kind, **fields)


class Attempt(Struct, kw_only=True, eq=False):
    """One try with one credential and one upstream model."""

    number: int
    lane: Lane
    upstream_model: str
    suffix: str | None
    content: Content
    """What goes to the executor."""
    client_content: Content
    """The client's body as interceptors left it, before translation."""
    headers: Headers
    metadata: Metadata
    key: str
    """The canonical model name under which the result counts."""
    started_s: float
    started_at_s: float
    began_s: float
    """On the clock of the pool, which another one than the machine's may drive."""
    first_byte_ms: float | None = None
    reached_upstream: bool = False
    response_headers: Headers = EMPTY_HEADERS
    answer_tier: str = ""
    """The service tier that the upstream says it used; only where somebody records it."""
    settled: bool = False


def request_fields(scope: RequestScope) -> dict[str, Any]:
    """The fields every request-bound payload begins with."""
    return {
        "request_id": scope.request_id,
        "parent_request_id": scope.parent_request_id,
        "attempt": scope.attempt,
    }


def shown_query(query: Headers, binding: Binding) -> Headers:
    """The query as this plugin may see it."""
    return visible_query(query, "client_credentials" in binding.permissions) if query else query


def shown_body(inputs: Inputs, content: Content) -> Body | UnsetType:
    """The field `body`, when it was asked for."""
    return select_body(inputs, content.body) if inputs.body else UNSET


def shown_parts(inputs: Inputs, content: Content) -> Mapping[str, Any]:
    """The field `body_parts`: what was asked for by pointer."""
    return body_parts(inputs.body_pointers, content.data) if inputs.body_pointers else {}


def client_body(inputs: Inputs, content: Content) -> Body | UnsetType:
    """The field `client_body`, when it was asked for."""
    return content.body if inputs.client_body else UNSET


def names_of(values: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Names for the trace."""
    return sorted(values) if values else []

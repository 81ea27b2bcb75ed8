"""host.model.*: a plugin runs a model through the whole pipeline (spec plugin-abi 4.9, design: Nested)."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import UNSET, Struct
from msgspec.structs import replace

from host.errors import RequestError
from host.pipeline.decode import UNDECODABLE
from host.pipeline.formats import MODEL_IN_BODY, canonical
from host.pipeline.patch import is_object, set_member
from host.pipeline.request import ClientRequest, ClientResponse, Principal
from host.pipeline.state import EXECUTE, EXECUTE_STREAM
from host.runtime.handle import ItemStream
from host.runtime.scope import CallScope, RequestScope
from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, host_error
from pluginabi.frames import Usage
from pluginabi.immutable import Headers, freeze_headers
from pluginabi.limits import MAX_NESTED_CALLS_PER_REQUEST, MAX_NESTING_DEPTH
from pluginabi.payloads.callbacks import ModelCallRequest, ModelCallResponse

if TYPE_CHECKING:
    from host.pipeline.execute import Gateway
    from host.pipeline.execution import Execution

_STREAM_IN_BODY: Final = frozenset({"openai", "openai-response", "claude"})


class _Head(Struct):
    model: object = None
    stream: object = None


_HEAD: Final = msgspec.json.Decoder(_Head)


class NestedModels:
    """Implements the runtime's `ModelRunner`."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    async def execute(self, params: ModelCallRequest, scope: CallScope) -> ModelCallResponse:
        """A complete answer. Raises as the pipeline does, the status of every error kept."""
        response = await self._gateway.run(self._begin(params, scope, EXECUTE))
        return _answer(response)

    async def execute_stream(self, params: ModelCallRequest, scope: CallScope) -> tuple[ModelCallResponse, ItemStream]:
        """The opening answer and the items: one raw item when an interceptor ended the nested request. Raises as
        `execute` until the first item is known."""
        opened = await self._gateway.run_stream(self._begin(params, scope, EXECUTE_STREAM))
        if isinstance(opened, ClientResponse):
            answer = _answer(opened)
            return ModelCallResponse(status=answer.status, headers=answer.headers), _OneItem(opened.body)
        return ModelCallResponse(headers=opened.headers), opened

    def _begin(self, params: ModelCallRequest, scope: CallScope, method: str) -> "Execution":
        parent = scope.request
        if parent is None:
            raise host_error("parent_closed", "host.model.* needs the call it belongs to")
        if parent.depth >= MAX_NESTING_DEPTH:
            raise host_error("depth_exceeded", f"nested model calls are limited to a depth of {MAX_NESTING_DEPTH}")
        # The runtime has just counted this call, so the number is unique among those of the client request.
        number = MAX_NESTED_CALLS_PER_REQUEST - parent.budget.remaining
        nested = scope.nested(f"{root_of(parent).request_id}.{number}")
        if parent.record is not None:
            parent.record("nested", plugin_id=scope.plugin_id, request_id=nested.request_id, model=params.model)
        request = _client_request(params, nested, parent, stream=method == EXECUTE_STREAM)
        wanted = canonical(params.exit_protocol) or request.protocol
        return self._gateway.begin(request, method, scope=nested, wanted=wanted)


class _OneItem:
    """A stream of one raw item."""

    def __init__(self, body: bytes) -> None:
        self.usage: Usage | None = None
        self._body = body

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        if self._body:
            yield StreamItem(raw=Body.exact(self._body))

    async def aclose(self, reason: str = "client_gone") -> None:
        """Nothing to stop."""


def root_of(scope: RequestScope) -> RequestScope:
    """The client request at the top of a chain of nested calls."""
    while scope.parent is not None:
        scope = scope.parent
    return scope


def _client_request(
    params: ModelCallRequest, scope: RequestScope, parent: RequestScope, *, stream: bool
) -> ClientRequest:
    protocol = canonical(params.entry_protocol) or "openai"
    data = b"" if params.body is UNSET else params.body.to_bytes()
    try:
        head = _HEAD.decode(data)
    except UNDECODABLE:
        raise RequestError(400, "invalid_request_error", "the body of a nested model call is a JSON object") from None
    model = params.model.strip() or (head.model if isinstance(head.model, str) else "")
    if not model:
        raise RequestError(
            400, "invalid_request_error", "a nested model call needs a model", details={"param": "model"}
        )
    data = _with_stream_flag(data, protocol, head.stream, stream)
    if protocol in MODEL_IN_BODY and head.model != model and is_object(data):
        data = set_member(data, "model", msgspec.json.encode(model))
    principal: Principal = parent.principal or Principal(name="", provider="plugin")
    return ClientRequest(
        request_id=scope.request_id,
        protocol=protocol,
        endpoint=f"NESTED {protocol}",
        model=model,
        stream=stream,
        body=data,
        alt=params.alt,
        headers=_own(params.headers) or parent.inbound_headers,
        query=_own(params.query) or parent.inbound_query,
        principal=replace(principal, provider="plugin"),
    )


def _with_stream_flag(data: bytes, protocol: str, flag: object, stream: bool) -> bytes:
    """The method decides whether an answer is streamed; a body that says otherwise is a mistake."""
    if protocol not in _STREAM_IN_BODY:
        return data
    if flag is True and not stream:
        raise RequestError(400, "invalid_request_error", "the body says stream: true; call host.model.execute_stream")
    if flag is False and stream:
        raise RequestError(400, "invalid_request_error", "the body says stream: false; call host.model.execute")
    return set_member(data, "stream", b"true") if stream and flag is not True else data


def _own(headers: Headers) -> Headers:
    return freeze_headers((name, value) for name, values in headers.items() for value in values)


def _answer(response: ClientResponse) -> ModelCallResponse:
    """What a client would have got. A direct response that refuses is an error with its status, as everywhere."""
    body = Body.from_bytes(response.body)
    if response.status >= 400:
        raise PluginError(
            ErrorBody(
                message=f"the nested request was ended with status {response.status}",
                code="terminated",
                http_status=response.status,
                headers=response.headers,
                body=body,
                origin="plugin",
            )
        )
    return ModelCallResponse(status=response.status, headers=response.headers, body=body)

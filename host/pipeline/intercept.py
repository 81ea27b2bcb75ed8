"""Request and response interceptors: chains of deltas; the result is authoritative (spec plugin-abi 4.3, design)."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from msgspec import UNSET

from host.observe.trace import Shape
from host.pipeline.execution import (
    Attempt,
    Content,
    Execution,
    Terminated,
    client_body,
    names_of,
    request_fields,
    shown_body,
    shown_parts,
    shown_query,
)
from host.pipeline.formats import MODEL_IN_BODY
from host.pipeline.headers import apply_delta, filtered
from host.pipeline.patch import apply_patch
from host.pipeline.request import ClientResponse
from host.pipeline.shown import shown_credential
from host.pipeline.state import EXECUTE_STREAM, Lane
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.errors import PluginError, host_error
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.intercept import (
    RequestInterceptRequest,
    RequestInterceptResponse,
    ResponseInterceptRequest,
    ResponseInterceptResponse,
)

log = structlog.get_logger("host.pipeline.intercept")

INTERCEPTED: Final = Shape(
    "intercepted", "plugin_id", "method", "body_size_before", "body_size", "headers", "cleared", "ignored"
)

Delta = RequestInterceptResponse | ResponseInterceptResponse


async def intercept_before(invoker: Invoker, ex: Execution) -> None:
    """Step 2: once per request, before anything is resolved. Raises Terminated, or what a `fail` hook raised.

    A changed `model` member becomes the model to resolve.
    """
    hooks = ex.state.plugins.implementers("request.intercept_before", ex.scope.skip)
    if not hooks:
        return
    before = ex.content
    ex.content, ex.headers = await _request_chain(
        invoker, ex, hooks, content=ex.content, headers=ex.headers, model=ex.model, metadata=ex.metadata
    )
    if ex.content is before or ex.source not in MODEL_IN_BODY:
        return
    model = ex.content.model
    if model and model != before.model:
        ex.record("model_changed", requested=ex.request.model, model=model)
        ex.model = model


async def intercept_after(
    invoker: Invoker, ex: Execution, lane: Lane, *, model: str, metadata: Metadata
) -> tuple[Content, Headers]:
    """Step 5: once per attempt, with credential and upstream format. Each attempt starts from the before-result."""
    hooks = ex.state.plugins.implementers("request.intercept_after", ex.scope.skip)
    if not hooks:
        return ex.content, ex.headers
    return await _request_chain(
        invoker, ex, hooks, content=ex.content, headers=ex.headers, model=model, metadata=metadata, lane=lane
    )


async def _request_chain(
    invoker: Invoker,
    ex: Execution,
    hooks: Sequence[Binding],
    *,
    content: Content,
    headers: Headers,
    model: str,
    metadata: Metadata,
    lane: Lane | None = None,
) -> tuple[Content, Headers]:
    for hook in hooks:

        def build(binding: Binding, content: Content = content, headers: Headers = headers) -> RequestInterceptRequest:
            return RequestInterceptRequest(
                request_id=ex.scope.request_id,
                parent_request_id=ex.scope.parent_request_id,
                attempt=ex.scope.attempt,
                source_format=ex.source,
                to_format=lane.input_format if lane is not None else "",
                model=model,
                requested_model=ex.request.model,
                stream=ex.method == EXECUTE_STREAM,
                credential=shown_credential(ex.state.manager, lane.credential, lane.handle, binding) if lane else None,
                metadata=metadata,
                headers=ex.visible_headers(headers, binding),
                query=shown_query(ex.query, binding),
                body=shown_body(binding.inputs, content),
                client_body=client_body(binding.inputs, ex.client_content),
                body_parts=shown_parts(binding.inputs, content),
                body_size=len(content.data),
            )

        answer = await invoker.call(hook, build, ex.scope)
        if answer.failed_open:
            continue
        delta: RequestInterceptResponse = answer.value
        if delta.terminate is not UNSET:
            ex.record("terminated", plugin_id=hook.plugin_id, method=hook.method, status=delta.terminate.status)
            raise Terminated(_direct(delta.terminate), plugin_id=hook.plugin_id)
        if delta.response_headers:
            _add_response_headers(ex, hook, delta.response_headers)
        content, headers = apply(ex, hook, delta, content, headers)
    return content, headers


def _add_response_headers(ex: Execution, hook: Binding, headers: Headers) -> None:
    added = ex.response_headers = ex.response_headers or {}
    added.update((name.lower(), tuple(values)) for name, values in headers.items())
    ex.record("response_headers", plugin_id=hook.plugin_id, headers=names_of(headers))


async def intercept_response(
    invoker: Invoker, ex: Execution, attempt: Attempt, content: Content, headers: Headers
) -> tuple[Content, Headers]:
    """Step 8, non-streamed: a complete, successful answer. Returns its body and headers as the chain left them."""
    hooks = ex.state.plugins.implementers("response.intercept_after", ex.scope.skip)
    for hook in hooks:

        def build(binding: Binding, content: Content = content, headers: Headers = headers) -> ResponseInterceptRequest:
            inputs = binding.inputs
            return ResponseInterceptRequest(
                **request_fields(ex.scope),
                source_format=ex.wanted,
                model=attempt.upstream_model,
                requested_model=ex.request.model,
                request_headers=ex.visible_headers(attempt.headers, binding),
                headers=headers,
                metadata=attempt.metadata,
                body=shown_body(inputs, content),
                client_body=client_body(inputs, ex.client_content),
                request_body=exact_or_plain(binding, attempt.client_content) if inputs.request_body else UNSET,
                body_parts=shown_parts(inputs, content),
                body_size=len(content.data),
            )

        answer = await invoker.call(hook, build, ex.scope)
        if not answer.failed_open:
            content, headers = apply(ex, hook, answer.value, content, headers)
    return content, headers


def exact_or_plain(binding: Binding, content: Content) -> Any:
    """A request body for a response hook, exact when the hook wants exact bytes."""
    return shown_body(binding.inputs, content) if binding.inputs.body_exact else content.body


def apply(ex: Execution, hook: Binding, delta: Delta, content: Content, headers: Headers) -> tuple[Content, Headers]:
    """Apply one delta; a delta that cannot be applied is the plugin's mistake, handled by its failure mode."""
    try:
        changed = _body_of(delta, content)
    except PluginError as mistake:
        note_mistake(ex, hook, mistake)
        return content, headers
    new_headers, ignored = apply_delta(
        headers, clear=delta.clear_headers, replace=delta.headers, may_see_secrets=hook.may("client_credentials")
    )
    if ignored:
        log.warning(
            "intercept.hidden_header", plugin_id=hook.plugin_id, method=hook.method, headers=ignored,
            request_id=ex.scope.request_id,
        )  # fmt: skip
    if ex.trace is not None and (changed is not content or new_headers is not headers or ignored):
        ex.trace.note(
            INTERCEPTED,
            hook.plugin_id,
            hook.method,
            len(content.data) if changed is not content else None,
            len(changed.data) if changed is not content else None,
            names_of(delta.headers),
            names_of(delta.clear_headers),
            ignored,
        )
    return changed, new_headers


def note_mistake(ex: Execution, hook: Binding, mistake: PluginError) -> None:
    """A well-formed answer that cannot be used: raises it for a hook that says `fail`, else writes it down."""
    if hook.on_error == "fail":
        raise mistake
    ex.record(
        "refused", plugin_id=hook.plugin_id, method=hook.method, code=mistake.code, message=str(mistake),
        failed_open=True,
    )  # fmt: skip
    log.warning(
        "intercept.refused", plugin_id=hook.plugin_id, method=hook.method, request_id=ex.scope.request_id,
        why=str(mistake),
    )  # fmt: skip


def _body_of(delta: Delta, content: Content) -> Content:
    if delta.body is UNSET and delta.patch is UNSET:
        return content
    if delta.body is not UNSET:
        if delta.patch is not UNSET:
            raise host_error("patch_not_applicable", "an answer has either body or patch, not both")
        return Content(body=delta.body)
    patch = delta.patch
    assert patch is not UNSET
    data = apply_patch(content.data, bytes(patch))
    return content if data is content.data else Content(data, is_json=True)


def _direct(terminate: Any) -> ClientResponse:
    status = terminate.status if 200 <= terminate.status <= 599 else 403
    headers: Mapping[str, Sequence[str]] = {name.lower(): values for name, values in terminate.headers.items()}
    body = b"" if terminate.body is UNSET else terminate.body.to_bytes()
    if terminate.body is not UNSET and "content-type" not in headers:
        kind = "application/json" if terminate.body.json is not UNSET else "text/plain; charset=utf-8"
        headers = {**headers, "content-type": (kind,)}
    return ClientResponse(status=status, headers=filtered(headers), body=body, direct=True)

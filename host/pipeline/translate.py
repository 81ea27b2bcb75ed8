"""Step 6 and the first half of step 8: normalisers, translators and thinking (spec plugin-abi 4.4, translation.md).

Same protocol on both sides: no translation, only the model name is written into the bytes when it changed. Different
protocols: `request.translate` and `response.translate`; when nobody speaks the pair the request is refused.
"""

from typing import Final

import msgspec
from msgspec import UNSET

from host.errors import RequestError
from host.pipeline.execution import Attempt, Content, Execution, request_fields, shown_body
from host.pipeline.formats import MODEL_IN_BODY
from host.pipeline.intercept import exact_or_plain
from host.pipeline.patch import set_member
from host.pipeline.state import EXECUTE_STREAM, Lane
from host.pipeline.thinking import thinking_config
from host.runtime.handle import Binding
from host.runtime.invoke import Invoker
from pluginabi.payloads.thinking import ThinkingApplyRequest
from pluginabi.payloads.translate import RequestTranslateRequest, ResponseTranslateRequest

_RESPONSE_NORMALIZERS: Final = frozenset({"response.normalize_before", "response.normalize_after"})


async def translate_request(
    invoker: Invoker, ex: Execution, lane: Lane, content: Content, *, model: str, suffix: str | None
) -> Content:
    """The body for the executor, in the lane's input format and naming `model`. Raises RequestError for a pair that
    nobody speaks, or what a hook with failure mode `fail` raised."""
    source, target = ex.source, lane.input_format
    if source == target:
        content = with_model(content, target, model)
    plugins = ex.state.plugins
    for hook in plugins.bindings.get("request.normalize", ()):
        content = await _ask_request(invoker, ex, hook, content, target=target, model=model) or content
    if source != target:
        content = await _translated(invoker, ex, content, target=target, model=model)
    if suffix is not None:
        content = await _apply_thinking(invoker, ex, lane, content, model=model, suffix=suffix)
    return content


def with_model(content: Content, protocol: str, model: str) -> Content:
    """`content` with `model` in place of another name; the same object when it names that already, or none at all."""
    if protocol not in MODEL_IN_BODY or not model:
        return content
    named = content.model
    if named is None or named == model:
        return content
    return Content(set_member(content.data, "model", msgspec.json.encode(model)), is_json=True, model=model)


async def _translated(invoker: Invoker, ex: Execution, content: Content, *, target: str, model: str) -> Content:
    for hook in ex.state.plugins.implementers("request.translate"):
        translated = await _ask_request(invoker, ex, hook, content, target=target, model=model)
        if translated is not None:
            ex.record("translated", plugin_id=hook.plugin_id, from_format=ex.source, to_format=target)
            return translated
    raise unsupported_pair(ex.source, target)


async def _ask_request(
    invoker: Invoker, ex: Execution, hook: Binding, content: Content, *, target: str, model: str
) -> Content | None:
    def build(binding: Binding) -> RequestTranslateRequest:
        return RequestTranslateRequest(
            **request_fields(ex.scope),
            from_format=ex.source,
            to_format=target,
            model=model,
            stream=ex.method == EXECUTE_STREAM,
            body=shown_body(binding.inputs, content),
        )

    answer = await invoker.call(hook, build, ex.scope)
    if answer.failed_open or answer.value.body is UNSET:
        return None
    return Content(body=answer.value.body)


async def _apply_thinking(
    invoker: Invoker, ex: Execution, lane: Lane, content: Content, *, model: str, suffix: str
) -> Content:
    """Write what the model's suffix says into the body, by the plugin that speaks for the provider."""
    config = thinking_config(suffix)
    if config is None:
        ex.record("thinking", suffix=suffix, applied=False, why="unknown suffix")
        return content
    for hook in ex.state.plugins.implementers("thinking.apply"):
        view = ex.state.plugins.plugins.get(hook.plugin_id)
        if view is None or view.thinking_provider not in (lane.provider, lane.input_format):
            continue

        def build(binding: Binding) -> ThinkingApplyRequest:
            return ThinkingApplyRequest(
                **request_fields(ex.scope),
                provider=lane.provider,
                model=lane.info,
                config=config,
                body=shown_body(binding.inputs, content),
            )

        answer = await invoker.call(hook, build, ex.scope)
        if not answer.failed_open and answer.value.body is not UNSET:
            ex.record("thinking", suffix=suffix, applied=True, plugin_id=hook.plugin_id)
            return Content(body=answer.value.body)
    ex.record("thinking", suffix=suffix, applied=False, why=f"nobody applies thinking for {lane.provider}")
    return content


async def translate_response(invoker: Invoker, ex: Execution, attempt: Attempt, content: Content) -> Content:
    """A complete answer in the client's protocol. Raises PluginError or RequestError when it cannot be translated."""
    plugins = ex.state.plugins
    source, target = attempt.lane.output_format, ex.wanted
    if source == target and plugins.bindings.keys().isdisjoint(_RESPONSE_NORMALIZERS):
        return content
    for hook in plugins.implementers("response.normalize_before"):
        content = await _ask_response(invoker, ex, attempt, hook, content) or content
    if source != target:
        for hook in plugins.implementers("response.translate"):
            translated = await _ask_response(invoker, ex, attempt, hook, content)
            if translated is not None:
                ex.record("translated", plugin_id=hook.plugin_id, from_format=source, to_format=target)
                content = translated
                break
        else:
            raise unsupported_pair(target, source)
    for hook in plugins.implementers("response.normalize_after"):
        content = await _ask_response(invoker, ex, attempt, hook, content) or content
    return content


async def _ask_response(
    invoker: Invoker, ex: Execution, attempt: Attempt, hook: Binding, content: Content
) -> Content | None:
    def build(binding: Binding) -> ResponseTranslateRequest:
        inputs = binding.inputs
        return ResponseTranslateRequest(
            **request_fields(ex.scope),
            from_format=attempt.lane.output_format,
            to_format=ex.wanted,
            model=attempt.upstream_model,
            body=shown_body(inputs, content),
            request_body=exact_or_plain(binding, attempt.content) if inputs.request_body else UNSET,
            client_body=attempt.client_content.body if inputs.client_body else UNSET,
        )

    answer = await invoker.call(hook, build, ex.scope)
    if answer.failed_open or answer.value.body is UNSET:
        return None
    return Content(body=answer.value.body)


def unsupported_pair(client: str, upstream: str) -> RequestError:
    """Nobody translates between the two protocols."""
    return RequestError(
        400,
        "unsupported_protocol_pair",
        f"nobody translates between {client} and {upstream}",
        details={"source_format": client, "upstream_formats": [upstream]},
    )

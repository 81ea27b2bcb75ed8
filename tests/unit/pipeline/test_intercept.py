"""Request and response interceptors."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from host.config.model import Config, ModelEntry, ProviderKey
from pluginabi.body import EMPTY_BODY, Body
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.common import Termination
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse, ResponseInterceptResponse
from tests.support.pipeline import FakePlugin, answering, client_request, compat_config, executor, world

BEFORE, AFTER, RESPONSE = "request.intercept_before", "request.intercept_after", "response.intercept_after"


def hook(name: str, method: str, answer: Any, *, priority: int = 0, **fields: Any) -> FakePlugin:
    respond: Callable[[Any], Any] = answer if callable(answer) else lambda _: answer
    return FakePlugin(id=name, hooks={method: respond}, priority=priority, **fields)


def patch(**members: Any) -> RequestInterceptResponse:
    return RequestInterceptResponse(patch=Raw(msgspec.json.encode(members)))


def text(value: str) -> Body:
    return Body(text=value)


async def test_I42_the_second_interceptor_sees_what_the_first_made_and_both_see_fresh_metadata():
    first = hook("p1", BEFORE, RequestInterceptResponse(body=text("A")), priority=2)
    second = hook("p2", BEFORE, lambda seen: RequestInterceptResponse(body=text(seen.body.text + "B")), priority=1)
    upstream = executor(answering())
    await world(first, second, upstream).gateway.execute(client_request())
    assert upstream.seen("executor.execute")[0].body == text("AB")
    assert first.seen(BEFORE)[0].metadata == second.seen(BEFORE)[0].metadata


async def test_I43_IN_02_an_absent_body_keeps_the_very_bytes_and_an_empty_text_makes_it_empty():
    upstream = executor(answering())
    body = b'{"model" : "m"}'
    await world(hook("p1", BEFORE, None), upstream).gateway.execute(client_request(body))
    await world(hook("p1", AFTER, RequestInterceptResponse(body=EMPTY_BODY)), upstream).gateway.execute(
        client_request(body)
    )
    kept, emptied = upstream.seen("executor.execute")
    assert (kept.body.to_bytes(), emptied.body.to_bytes()) == (body, b"")


@pytest.mark.parametrize("given", [Body(text='{"id":"x"}'), Body.exact(b'{"id":"x"}')], ids=["text", "exact"])
async def test_a_response_interceptor_sees_json_as_json_in_whatever_form_the_executor_answered(given):
    seen = hook("p1", RESPONSE, None)
    await world(seen, executor(lambda _: ExecutorResponse(body=given))).gateway.execute(client_request())
    assert seen.seen(RESPONSE)[0].body == Body(json=Raw(b'{"id":"x"}'))


@pytest.mark.parametrize("method", [BEFORE, AFTER])
async def test_I44_I48_header_deltas_are_authoritative_removal_included(method):
    delta = RequestInterceptResponse(clear_headers=["x-old"], headers={"X-New": ["1"]})
    upstream = executor(answering())
    w = world(hook("p1", method, delta), upstream)
    await w.gateway.execute(client_request(headers={"X-Old": "1", "X-Keep": "2"}))
    assert dict(upstream.seen("executor.execute")[0].headers) == {"x-keep": ("2",), "x-new": ("1",)}


async def test_I46_before_knows_no_upstream_format_and_after_knows_it_with_the_credential():
    before, after = hook("p1", BEFORE, None), hook("p2", AFTER, None)
    config = Config(claude_api_key=[ProviderKey(api_key="k", models=[ModelEntry(name="m")])])
    w = world(before, after, executor(answering(), providers=["claude"]), config=config)
    await w.gateway.execute(client_request(protocol="claude"))
    (first,), (second,) = before.seen(BEFORE), after.seen(AFTER)
    assert (first.to_format, first.credential, first.attempt) == ("", None, None)
    assert (second.to_format, second.credential.provider, second.attempt) == ("claude", "claude", 1)


async def test_each_attempt_starts_from_the_before_result():
    seen_bodies = []

    def after(request):
        seen_bodies.append(request.body.value())
        return patch(attempt=request.attempt)

    calls = []

    def execute(request):
        calls.append(request)
        return PluginError("busy", http_status=503) if len(calls) == 1 else ExecutorResponse()

    w = world(hook("p1", AFTER, after), executor(execute), config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request({"model": "m"}))
    assert seen_bodies == [{"model": "m"}, {"model": "m"}]
    assert [call.body.value()["attempt"] for call in calls] == [1, 2]


@pytest.mark.parametrize(
    "failure", [PluginError("no", http_status=403), PluginTransportError("p1", BEFORE, phase="exit", cause="x")]
)
async def test_I49_a_failing_interceptor_is_skipped_and_the_next_is_called(failure):
    second = hook("p2", BEFORE, None)
    w = world(hook("p1", BEFORE, failure, priority=1), second, executor(answering()))
    await w.gateway.execute(client_request())
    assert len(second.seen(BEFORE)) == 1
    assert w.decisions("call")[0]["failed_open"] is True


@pytest.mark.parametrize("method", [BEFORE, AFTER, RESPONSE])
async def test_a_guard_fails_closed_with_its_own_status_and_is_not_blamed_on_the_credential(method):
    guard = hook("p1", method, PluginError("not you", http_status=451), on_error={method: "fail"})
    upstream = executor(answering())
    w = world(guard, upstream, config=compat_config(keys=("k1", "k2")))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert raised.value.http_status == 451
    assert len(upstream.seen("executor.execute")) == (1 if method == RESPONSE else 0)
    assert w.gateway.state.pool.book.empty


async def test_a_guard_whose_process_is_down_fails_closed():
    down = PluginTransportError("p1", BEFORE, phase="unavailable", cause="down")
    w = world(hook("p1", BEFORE, down, on_error={BEFORE: "fail"}), executor(answering()))
    with pytest.raises(PluginTransportError):
        await w.gateway.execute(client_request())


@pytest.mark.parametrize("method", [BEFORE, AFTER])
async def test_a_termination_is_the_response_and_nothing_after_it_runs(method):
    end = RequestInterceptResponse(
        terminate=Termination(status=403, headers={"X-Why": ["1"]}, body=Body.from_value({"no": 1}))
    )
    later, upstream = hook("p2", method, None), executor(answering())
    watcher = FakePlugin(id="w", hooks={"request.complete": lambda _: None, "usage.handle": lambda _: None})
    w = world(hook("p1", method, end, priority=1), later, upstream, watcher)
    response = await w.gateway.execute(client_request())
    assert (response.status, response.body, response.direct) == (403, b'{"no":1}', True)
    assert dict(response.headers) == {"x-why": ("1",), "content-type": ("application/json",)}
    assert (later.seen(method), upstream.seen("executor.execute")) == ([], [])
    await w.settled()
    assert [(seen.outcome, seen.status) for seen in watcher.seen("request.complete")] == [("rejected", 403)]
    assert watcher.seen("usage.handle") == []


async def test_a_stream_can_be_terminated_before_it_begins():
    end = RequestInterceptResponse(terminate=Termination(status=200, body=text("cached")))
    w = world(hook("p1", BEFORE, end), executor(answering()))
    response = await w.gateway.execute_stream(client_request(stream=True))
    assert (response.status, response.body) == (200, b"cached")


@pytest.mark.parametrize(("status", "expected"), [(199, 403), (600, 403), (200, 200), (599, 599)])
async def test_a_termination_status_outside_of_http_becomes_403(status, expected):
    end = RequestInterceptResponse(terminate=Termination(status=status))
    assert (await world(hook("p1", BEFORE, end)).gateway.execute(client_request())).status == expected


async def test_a_patch_changes_its_members_only():
    upstream = executor(answering())
    w = world(hook("p1", BEFORE, patch(temperature=0, user=None)), upstream)
    await w.gateway.execute(client_request(b'{"model":"m", "n":1.0e2, "user":"u"}'))
    assert upstream.seen("executor.execute")[0].body.to_bytes() == b'{"model":"m","n":1.0e2,"temperature":0}'


@pytest.mark.parametrize(
    "delta",
    [
        RequestInterceptResponse(body=text("x"), patch=Raw(b"{}")),
        RequestInterceptResponse(patch=Raw(b"[]"), headers={"x": ["1"]}),
    ],
    ids=["body and patch", "patch is no object"],
)
async def test_a_delta_that_cannot_be_applied_is_handled_by_the_failure_mode(delta):
    upstream = executor(answering())
    w = world(hook("p1", BEFORE, delta), upstream)
    await w.gateway.execute(client_request())
    assert dict(upstream.seen("executor.execute")[0].headers) == {}
    assert w.decisions("refused")[0]["code"] == "patch_not_applicable"
    with pytest.raises(PluginError) as raised:
        await world(hook("p1", BEFORE, delta, on_error={BEFORE: "fail"})).gateway.execute(client_request())
    assert (raised.value.code, raised.value.http_status) == ("patch_not_applicable", 500)


async def test_a_changed_model_is_resolved_and_traced():
    upstream = executor(answering())
    w = world(hook("p1", BEFORE, patch(model="m2")), upstream, config=compat_config(models=("m", "m2")))
    await w.gateway.execute(client_request())
    (seen,) = upstream.seen("executor.execute")
    assert (seen.model, seen.requested_model, seen.body.value()["model"]) == ("m2", "m", "m2")
    assert w.decisions("model_changed") == [{"requested": "m", "model": "m2"}]


async def test_a_model_written_by_an_after_interceptor_is_asked_for_as_it_is():
    upstream = executor(answering())
    await world(hook("p1", AFTER, patch(model="other")), upstream).gateway.execute(client_request())
    (seen,) = upstream.seen("executor.execute")
    assert (seen.model, seen.requested_model, seen.body.value()["model"]) == ("other", "m", "other")


async def test_hidden_headers_are_not_shown_and_not_touched():
    delta = RequestInterceptResponse(headers={"Authorization": ["mine"]}, clear_headers=["cookie"])
    plain, trusted = hook("p1", BEFORE, delta), hook("p2", AFTER, None, permissions=frozenset({"client_credentials"}))
    w = world(plain, trusted, executor(answering()))
    await w.gateway.execute(client_request(headers={"Authorization": "Bearer s", "Cookie": "c", "X-A": "1"}))
    assert dict(plain.seen(BEFORE)[0].headers) == {"x-a": ("1",)}
    assert dict(trusted.seen(AFTER)[0].headers) == {"authorization": ("Bearer s",), "cookie": ("c",), "x-a": ("1",)}
    assert w.decisions("intercepted")[0]["ignored"] == ["cookie", "authorization"]


async def test_IN_03_IN_04_the_response_hook_sees_the_request_as_the_after_hook_left_it():
    before = hook("p1", BEFORE, patch(by_before=1))
    after = FakePlugin(
        id="p2",
        hooks={
            AFTER: lambda _: RequestInterceptResponse(patch=Raw(b'{"by_after":1}'), headers={"X-After": ["1"]}),
            RESPONSE: lambda _: None,
        },
        inputs={RESPONSE: ["request_body", "client_body"]},
    )
    w = world(before, after, executor(answering()))
    await w.gateway.execute(client_request({"model": "m"}, protocol="openai-response"))
    (seen,) = after.seen(AFTER)
    assert (seen.source_format, seen.to_format, seen.body.value()) == (
        "openai-response",
        "openai-response",
        {"model": "m", "by_before": 1},
    )
    (answered,) = after.seen(RESPONSE)
    assert answered.request_body.value() == {"model": "m", "by_before": 1, "by_after": 1}
    assert answered.client_body.value() == {"model": "m"}
    assert dict(answered.request_headers) == {"x-after": ("1",)}


async def test_IN_05_a_response_hook_replaces_body_and_headers():
    delta = ResponseInterceptResponse(body=text("plugin-body"), clear_headers=["X-Clear"])
    upstream = executor(lambda _: ExecutorResponse(headers={"x-clear": ["1"], "x-up": ["2"]}))
    w = world(hook("p1", RESPONSE, delta), upstream, config=compat_config(passthrough_headers=True))
    response = await w.gateway.execute(client_request())
    assert (response.body, dict(response.headers)) == (b"plugin-body", {"x-up": ("2",)})


async def test_I53_IN_13_without_passthrough_the_hook_sees_the_upstreams_headers_and_the_client_only_the_hooks():
    asked = hook("p1", RESPONSE, ResponseInterceptResponse(headers={"X-Mod": ["1"]}))
    w = world(asked, executor(lambda _: ExecutorResponse(headers={"x-up": ["1"]})))
    response = await w.gateway.execute(client_request())
    assert dict(asked.seen(RESPONSE)[0].headers) == {"x-up": ["1"]}
    assert dict(response.headers) == {"x-mod": ("1",)}


async def test_I52_an_executor_error_reaches_no_response_hook():
    asked = hook("p1", RESPONSE, None)
    with pytest.raises(PluginError):
        await world(asked, executor(lambda _: PluginError("no", http_status=400))).gateway.execute(client_request())
    assert asked.seen(RESPONSE) == []


async def test_a_hook_without_inputs_gets_no_body():
    asked = hook("p1", BEFORE, None, inputs={BEFORE: []})
    await world(asked, executor(answering())).gateway.execute(client_request(b'{"model":"m"}'))
    (seen,) = asked.seen(BEFORE)
    assert (seen.body, seen.body_size) == (msgspec.UNSET, 13)

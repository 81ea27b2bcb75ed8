"""model.route: who is asked, which answers count, and that no router can fail a request."""

import contextlib

import pytest

from host.config.model import CompatProvider, Config, ModelEntry, ProviderKey
from host.errors import RequestError
from host.pipeline.request import Operation
from host.runtime.handle import PluginState
from pluginabi.body import Body
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import RequestInterceptResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.routing import ModelRouteResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    answering,
    client_request,
    compat_config,
    executor,
    raw_bytes,
    read_all,
    world,
)

TARGET = {"executor.execute": answering({"by": "target"}), "executor.count_tokens": answering({"by": "count"})}


def router(name: str, answer, *, priority: int = 0, **fields) -> FakePlugin:
    hooks = {"model.route": answer if callable(answer) else lambda _: answer, **fields.pop("hooks", {})}
    return FakePlugin(id=name, hooks=hooks, priority=priority, **fields)


def to_executor(target: str) -> ModelRouteResponse:
    return ModelRouteResponse(target_kind="executor", target=target, reason="because")


def to_provider(provider: str, model: str = "") -> ModelRouteResponse:
    return ModelRouteResponse(target_kind="provider", target=provider, target_model=model)


def two_providers() -> Config:
    models = [ModelEntry(name="m")]
    return Config(
        openai_compatibility=[CompatProvider(name="acme", base_url="https://a.test", models=models)],
        claude_api_key=[ProviderKey(api_key="k", models=[ModelEntry(name="claude-x")])],
    )


async def test_R62_the_first_router_that_decides_wins_and_the_next_is_not_asked():
    first, second = router("p1", to_executor("target"), priority=2), router("p2", to_executor("upstream"), priority=1)
    w = world(first, second, FakePlugin(id="target", hooks=TARGET), executor(answering()))
    assert (await w.gateway.execute(client_request(model="unknown"))).body == b'{"by":"target"}'
    assert second.seen("model.route") == []
    assert w.decisions("route")[0]["reason"] == "because"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        PluginError("no", http_status=400),
        PluginTransportError("p1", "model.route", phase="exit", cause="x"),
        ValueError("bug"),
    ],
)
async def test_R63_a_router_without_opinion_or_with_an_error_leaves_it_to_the_next(answer):
    second = router("p2", to_executor("target"), priority=1)
    w = world(router("p1", answer, priority=2), second, FakePlugin(id="target", hooks=TARGET), executor(answering()))
    assert (await w.gateway.execute(client_request())).body == b'{"by":"target"}'


@pytest.mark.parametrize(
    ("vector", "answer"),
    [
        ("R64 self without executor", ModelRouteResponse(target_kind="self")),
        ("R66 blank target", to_executor("  ")),
        ("R66 unknown plugin", to_executor("nobody")),
        ("R66 unsupported format", to_executor("claude-only")),
        ("R66 scope oauth", to_executor("needs-credential")),
        ("R66 R73 failed plugin", to_executor("failed")),
        ("R66 starting plugin", to_executor("starting")),
        ("R68 provider without credential", to_provider("gemini")),
        ("R68 blank provider", to_provider(" ")),
        ("R69 empty kind", ModelRouteResponse(target="target")),
        ("R69 unknown kind", ModelRouteResponse(target_kind="Executor", target="target")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_answer_that_cannot_be_followed_falls_through(vector, answer):
    failed = FakePlugin(id="failed", hooks=TARGET)
    failed.handle.state = PluginState.FAILED
    starting = FakePlugin(id="starting", hooks=TARGET)
    starting.handle.state = PluginState.STARTING
    w = world(
        router("p1", answer),
        FakePlugin(
            id="claude-only",
            hooks=TARGET,
            executor=ExecutorRegistration(input_formats=["claude"], output_formats=["claude"]),
        ),
        FakePlugin(id="needs-credential", hooks=TARGET, executor=ExecutorRegistration(scope="oauth")),
        failed,
        starting,
        executor(answering({"by": "registry"})),
    )
    assert (await w.gateway.execute(client_request())).body == b'{"by":"registry"}'
    assert len(w.decisions("route_refused")) == 1


@pytest.mark.parametrize("state", [PluginState.FAILED, PluginState.BACKOFF, PluginState.STARTING])
async def test_R73_when_nobody_else_serves_what_a_plugin_that_is_down_should_it_is_502_and_not_an_unknown_model(state):
    target = FakePlugin(id="target", hooks=TARGET)
    target.handle.state = state
    w = world(router("p1", to_executor("target")), target, executor(answering()))
    with pytest.raises(PluginTransportError) as raised:
        await w.gateway.execute(client_request(model="only-there"))
    assert (raised.value.http_status, raised.value.code) == (502, "plugin_unavailable")
    assert "target" in str(raised.value)
    with pytest.raises(RequestError, match="unknown provider"):
        await world(router("p1", to_executor("nobody")), executor(answering())).gateway.execute(
            client_request(model="only-there")
        )


async def test_R67_MR_11_MR_12_a_provider_is_folded_and_the_model_is_the_requested_one_or_the_routers():
    upstream = executor(answering(), providers=["claude", "openai-compatible-*"])
    w = world(router("p1", to_provider(" Claude ")), upstream, config=two_providers())
    await w.gateway.execute(client_request(model="whatever"))
    w2 = world(router("p1", to_provider("claude", " m2 ")), upstream, config=two_providers())
    await w2.gateway.execute(client_request(model="whatever"))
    first, second = upstream.seen("executor.execute")
    assert (first.credential.provider, first.model, first.requested_model) == ("claude", "whatever", "whatever")
    assert (second.model, second.requested_model) == ("m2", "whatever")


@pytest.mark.parametrize(("excluded", "asked"), [("*", "m9"), ("m*", "M9(high)"), ("x", "m9")])
async def test_a_router_reaches_no_model_that_is_excluded_nor_a_key_that_is_switched_off(excluded, asked):
    keys = [ProviderKey(api_key="k", excluded_models=[excluded])]
    upstream = executor(answering(), providers=["claude"])
    w = world(router("p1", to_provider("claude")), upstream, config=Config(claude_api_key=keys))
    with contextlib.nullcontext() if excluded == "x" else pytest.raises(RequestError, match="unknown provider"):
        await w.gateway.execute(client_request(model=asked))
    assert len(upstream.seen("executor.execute")) == (excluded == "x")


async def test_R71_the_routed_model_is_written_into_the_body_for_the_upstream():
    upstream = executor(answering(), providers=["claude", "openai-compatible-*"])
    w = world(router("p1", to_provider("claude", "m2")), upstream, config=two_providers())
    await w.gateway.execute(client_request(b'{"model":"whatever", "x":1.0}'))
    assert upstream.seen("executor.execute")[0].body.to_bytes() == b'{"model":"m2", "x":1.0}'


async def test_R72_R77_MR_09_an_image_only_model_on_a_text_route_is_503_routed_or_not():
    w = world(router("p1", to_provider("openai-compatible-acme", "gpt-image-2")), executor(answering()))
    for gateway, model in ((w.gateway, "m"), (world(executor(answering())).gateway, "foo/gpt-image-1.5(8k)")):
        with pytest.raises(RequestError) as refused:
            await gateway.execute(client_request(model=model))
        assert refused.value.body.http_status == 503
        assert "gpt-image-" in refused.value.body.message


async def test_MR_14_a_plugin_executor_gets_the_model_as_it_is_and_no_credential():
    target = FakePlugin(id="target", hooks=TARGET)
    w = world(router("p1", to_executor("target")), target, executor(answering()))
    await w.gateway.execute(client_request(model="nobody-knows(high)"))
    (seen,) = target.seen("executor.execute")
    assert (seen.credential, seen.requested_model) == (None, "nobody-knows(high)")
    assert seen.metadata["requested_model"] == "nobody-knows(high)"
    assert w.decisions("picked") == []


async def test_a_router_may_send_a_request_to_its_own_executor():
    own = router("p1", ModelRouteResponse(target_kind="self"), hooks=TARGET)
    assert (await world(own).gateway.execute(client_request())).body == b'{"by":"target"}'


async def test_R76_MR_19_a_count_request_routes_with_stream_false_and_runs_the_interceptors():
    hooks = {
        "request.intercept_before": lambda _: None,
        "request.intercept_after": lambda _: None,
    }
    asked = router("p1", to_executor("target"), hooks=hooks)
    w = world(asked, FakePlugin(id="target", hooks=TARGET))
    response = await w.gateway.execute(client_request(operation=Operation.COUNT))
    assert response.body == b'{"by":"count"}'
    assert asked.seen("model.route")[0].stream is False
    assert [len(asked.seen(method)) for method in hooks] == [1, 1]


async def test_MR_16_without_routers_nothing_is_built_and_resolution_is_as_always():
    assert (await world(executor(answering())).gateway.execute(client_request())).status == 200


async def test_a_router_sees_no_body_by_default_but_its_size_and_no_client_secret():
    asked = router("p1", None)
    w = world(asked, executor(answering()), config=compat_config())
    body = b'{"model":"m","tools":[1]}'
    await w.gateway.execute(client_request(body, headers={"Authorization": "Bearer s", "X-A": "1"}))
    (seen,) = asked.seen("model.route")
    assert (seen.body_size, dict(seen.headers)) == (len(body), {"x-a": ("1",)})
    assert seen.available_providers == ("openai-compatible-acme",)
    assert "service_tier" not in seen.metadata


async def test_a_router_sees_the_parts_it_asks_for():
    asked = router("p1", None, inputs={"model.route": ["body:/tools", "body:/nothing"]})
    await world(asked, executor(answering())).gateway.execute(client_request(b'{"model":"m","tools":[1]}'))
    assert dict(asked.seen("model.route")[0].body_parts) == {"/tools": (1,)}


async def test_MR_21_the_after_interceptor_runs_once_on_a_plugin_route_and_the_executor_sees_its_edits():
    target = FakePlugin(
        id="target",
        hooks={
            **TARGET,
            "request.intercept_after": lambda _: RequestInterceptResponse(
                body=Body.from_value({"edited": True}), headers={"X-New": ["1"]}, clear_headers=["x-old"]
            ),
        },
    )
    w = world(router("p1", to_executor("target")), target)
    await w.gateway.execute(client_request(headers={"X-Old": "1"}))
    (seen,) = target.seen("executor.execute")
    assert (seen.body.value(), dict(seen.headers)) == ({"edited": True}, {"x-new": ("1",)})


async def test_I47_the_after_interceptor_of_a_plugin_route_sees_the_executors_input_format():
    translator = {"request.translate": lambda _: None, "response.translate": lambda _: None}
    asked = router("p1", to_executor("target"), hooks={"request.intercept_after": lambda _: None, **translator})
    target = FakePlugin(
        id="target",
        hooks=TARGET,
        executor=ExecutorRegistration(input_formats=[" Anthropic "], output_formats=["claude"]),
    )
    with pytest.raises(RequestError):
        await world(asked, target).gateway.execute(client_request())
    assert asked.seen("request.intercept_after")[0].to_format == "claude"


async def test_MR_20_a_stream_of_a_plugin_executor_peeks_and_closes_like_any_other():
    items = FakeItems([b"data: {}\n\n", b"data: [DONE]\n\n"])
    target = FakePlugin(id="target", hooks={"executor.execute_stream": lambda _: items})
    w = world(router("p1", to_executor("target")), target)
    stream = await w.gateway.execute_stream(client_request(stream=True))
    assert items.taken == 1
    await stream.aclose()
    assert items.closed == ["client_gone"]


async def test_a_plugin_route_is_accounted_like_a_credential_route():
    watcher = FakePlugin(id="watcher", hooks={"usage.handle": lambda _: None, "request.complete": lambda _: None})
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    target = FakePlugin(id="target", hooks={"executor.execute": answering(usage)})
    w = world(router("p1", to_executor("target")), target, watcher)
    await w.gateway.execute(client_request())
    await w.settled()
    (seen,) = watcher.seen("usage.handle")
    assert (seen.executor, seen.usage.input_tokens, seen.usage.output_tokens) == ("target", 1, 2)


async def test_a_plugin_route_is_never_retried_and_its_error_is_the_answer():
    target = FakePlugin(id="target", hooks={"executor.execute": lambda _: PluginError("no", http_status=503)})
    w = world(router("p1", to_executor("target")), target, executor(answering()))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert raised.value.http_status == 503
    assert len(target.seen("executor.execute")) == 1


async def test_the_route_of_a_streamed_request_says_stream():
    asked = router("p1", None)
    w = world(asked, executor(stream=lambda _: FakeItems([b"data: [DONE]\n\n"])))
    stream = await w.gateway.execute_stream(client_request(stream=True))
    assert raw_bytes(await read_all(stream)) == b"data: [DONE]\n\n"
    assert asked.seen("model.route")[0].stream is True


async def test_a_model_served_by_another_protocol_is_refused_with_both_names():
    w = world(
        executor(
            answering(),
            providers=["claude"],
            executor=ExecutorRegistration(input_formats=["claude"], output_formats=["claude"]),
        ),
        config=two_providers(),
    )
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request(model="claude-x"))
    body = refused.value.body
    assert (body.http_status, body.code) == (400, "unsupported_protocol_pair")
    assert "openai" in body.message
    assert "claude" in body.message


async def test_a_provider_that_cannot_do_the_operation_is_400():
    with pytest.raises(RequestError) as refused:
        await world(executor(answering())).gateway.execute_stream(client_request(stream=True))
    assert (refused.value.body.http_status, refused.value.body.code) == (400, "unsupported_operation")


async def test_an_answer_outside_of_success_is_never_200():
    w = world(executor(lambda _: ExecutorResponse(status=302)))
    with pytest.raises(PluginError) as raised:
        await w.gateway.execute(client_request())
    assert (raised.value.http_status, raised.value.code) == (502, "plugin_protocol_error")

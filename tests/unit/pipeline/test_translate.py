"""Normalisers, translators, model names and thinking."""

from typing import Any

import pytest

from host.config.model import CompatProvider, Config, ModelEntry
from host.errors import RequestError
from host.pipeline.thinking import thinking_config
from pluginabi.body import Body
from pluginabi.errors import PluginError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.thinking import ThinkingApplyResponse, ThinkingConfig
from pluginabi.payloads.translate import RequestTranslateResponse, ResponseTranslateResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, compat_config, executor, world

NORMALIZE, TRANSLATE = "request.normalize", "request.translate"
BEFORE, BACK, AFTER = "response.normalize_before", "response.translate", "response.normalize_after"
OPENAI_ONLY = ExecutorRegistration(input_formats=["openai"], output_formats=["openai"])


def adding(member: str, response: type) -> Any:
    """A hook that adds a member to the body."""
    return lambda seen: response(body=Body.from_value({**seen.body.value(), member: True}))


def plugin(name: str = "p1", *, priority: int = 0, **hooks: Any) -> FakePlugin:
    return FakePlugin(id=name, hooks={key.replace("__", "."): hook for key, hook in hooks.items()}, priority=priority)


def responses_client(*plugins: FakePlugin, **fields: Any) -> tuple[World, FakePlugin]:
    """A Responses client in front of a chat-only executor."""
    upstream = executor(answering({"upstream": True}), executor=OPENAI_ONLY, **fields)
    return world(upstream, *plugins), upstream


async def test_X79_a_body_is_translated_there_and_back_with_normalisers_around():
    w, upstream = responses_client(
        plugin(
            request__normalize=adding("normalized", RequestTranslateResponse),
            request__translate=adding("translated", RequestTranslateResponse),
            response__normalize_before=adding("before", ResponseTranslateResponse),
            response__translate=adding("back", ResponseTranslateResponse),
            response__normalize_after=adding("after", ResponseTranslateResponse),
        )
    )
    response = await w.gateway.execute(client_request({"model": "m"}, protocol="openai-response"))
    (seen,) = upstream.seen("executor.execute")
    assert (seen.source_format, seen.format) == ("openai", "openai")
    assert list(seen.body.value()) == ["model", "normalized", "translated"]
    assert list(Body.from_bytes(response.body).value()) == ["upstream", "before", "back", "after"]
    assert [it["from_format"] for it in w.decisions("translated")] == ["openai-response", "openai"]


async def test_the_hooks_know_both_formats_the_model_and_the_direction():
    hooks = plugin(
        request__translate=adding("t", RequestTranslateResponse),
        response__translate=adding("t", ResponseTranslateResponse),
    )
    w, _ = responses_client(hooks)
    await w.gateway.execute(client_request(protocol="openai-response"))
    (there,), (back,) = hooks.seen(TRANSLATE), hooks.seen(BACK)
    assert (there.from_format, there.to_format, there.model) == ("openai-response", "openai", "m")
    assert (back.from_format, back.to_format, back.model) == ("openai", "openai-response", "m")


async def test_the_first_translator_that_answers_wins():
    first = plugin("p1", priority=2, request__translate=lambda _: None, response__translate=lambda _: PluginError("x"))
    second = plugin(
        "p2",
        priority=1,
        request__translate=adding("p2", RequestTranslateResponse),
        response__translate=adding("p2", ResponseTranslateResponse),
    )
    third = plugin("p3", request__translate=adding("p3", RequestTranslateResponse))
    w, upstream = responses_client(first, second, third)
    await w.gateway.execute(client_request(protocol="openai-response"))
    assert "p2" in upstream.seen("executor.execute")[0].body.value()
    assert third.seen(TRANSLATE) == []


@pytest.mark.parametrize("hooks", [{}, {"request__translate": lambda _: None, "response__translate": lambda _: None}])
async def test_a_pair_that_nobody_speaks_is_400_and_names_both(hooks):
    w, upstream = responses_client(plugin(**hooks))
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request(protocol="openai-response"))
    body = refused.value.body
    assert (body.http_status, body.code) == (400, "unsupported_protocol_pair")
    assert "openai-response" in body.message
    assert upstream.seen("executor.execute") == []


async def test_normalisers_run_for_equal_formats_too_and_translators_do_not():
    hooks = plugin(
        request__normalize=adding("normalized", RequestTranslateResponse),
        request__translate=adding("never", RequestTranslateResponse),
        response__normalize_after=adding("normalized", ResponseTranslateResponse),
        response__translate=adding("never", ResponseTranslateResponse),
    )
    upstream = executor(answering({}))
    response = await world(upstream, hooks).gateway.execute(client_request())
    assert "normalized" in upstream.seen("executor.execute")[0].body.value()
    assert response.body == b'{"normalized":true}'
    assert (hooks.seen(TRANSLATE), hooks.seen(BACK)) == ([], [])


async def test_a_failing_normaliser_leaves_the_body_as_it_is():
    upstream = executor(answering())
    body = b'{"model" : "m"}'
    hooks = plugin(request__normalize=lambda _: PluginError("bug"), response__normalize_before=lambda _: ValueError())
    response = await world(upstream, hooks).gateway.execute(client_request(body))
    assert upstream.seen("executor.execute")[0].body.to_bytes() == body
    assert response.body == b'{"id":"x"}'


async def test_a_provider_that_speaks_the_clients_protocol_is_preferred_over_translating():
    formats = ExecutorRegistration(input_formats=["openai", "openai-response"], output_formats=["responses"])
    upstream = executor(answering(), executor=formats)
    await world(upstream).gateway.execute(client_request(protocol="openai-response"))
    (seen,) = upstream.seen("executor.execute")
    assert (seen.source_format, seen.format) == ("openai-response", "openai-response")


async def test_an_aliased_model_is_written_into_the_bytes_and_the_rest_stays():
    config = Config(
        openai_compatibility=[
            CompatProvider(
                name="a", base_url="https://a.test", prefix="team", models=[ModelEntry(name="up-1", alias="m")]
            )
        ]
    )
    upstream = executor(answering())
    await world(upstream, config=config).gateway.execute(client_request(b'{"n":1.0, "model":"team/m"}', model="team/m"))
    (seen,) = upstream.seen("executor.execute")
    assert seen.body.to_bytes() == b'{"n":1.0, "model":"up-1"}'
    assert (seen.model, seen.requested_model) == ("up-1", "team/m")


async def test_a_gemini_body_names_no_model_and_stays_as_it_is():
    body = b'{"contents":[]}'
    upstream = executor(answering(), executor=ExecutorRegistration(input_formats=["gemini"], output_formats=["gemini"]))
    await world(upstream).gateway.execute(client_request(body, protocol="gemini"))
    assert upstream.seen("executor.execute")[0].body.to_bytes() == body


def thinker(provider: str) -> FakePlugin:
    return FakePlugin(
        id=f"thinker-{provider}",
        hooks={"thinking.apply": lambda seen: ThinkingApplyResponse(body=Body.from_value({"by": seen.provider}))},
        thinking_provider=provider,
    )


async def test_a_thinking_suffix_is_taken_off_the_name_and_applied_by_the_providers_plugin():
    own, other = thinker("openai-compatible-acme"), thinker("claude")
    upstream = executor(answering())
    w = world(own, other, upstream)
    await w.gateway.execute(client_request({"model": "m(8192)"}, model="m(8192)"))
    (seen,) = upstream.seen("executor.execute")
    assert (seen.model, seen.requested_model, seen.body.value()) == (
        "m",
        "m(8192)",
        {"by": "openai-compatible-acme"},
    )
    (asked,) = own.seen("thinking.apply")
    assert asked.config == ThinkingConfig(mode="budget", budget=8192)
    assert (asked.model.id, asked.body.value()) == ("m", {"model": "m"})
    assert other.seen("thinking.apply") == []


async def test_a_suffix_that_nobody_applies_is_written_down():
    w = world(executor(answering()))
    await w.gateway.execute(client_request(model="m(high)"))
    assert w.decisions("thinking")[0]["applied"] is False


@pytest.mark.parametrize(
    ("suffix", "config"),
    [
        ("8192", ThinkingConfig(mode="budget", budget=8192)),
        ("High", ThinkingConfig(mode="level", level="high")),
        ("none", ThinkingConfig(mode="none", budget=0)),
        ("0", ThinkingConfig(mode="none", budget=0)),
        ("auto", ThinkingConfig(mode="auto")),
        ("-1", ThinkingConfig(mode="auto")),
        ("preview", None),
        ("", None),
    ],
)
def test_a_suffix_as_a_thinking_configuration(suffix, config):
    assert thinking_config(suffix) == config


@pytest.mark.parametrize("hook", ["response__normalize_before", "response__normalize_after"])
async def test_an_empty_answer_of_the_upstream_passes_the_hooks(hook):
    seen = []
    hooks = plugin(**{hook: lambda request: seen.append(request.body)})
    response = await world(executor(lambda _: ExecutorResponse()), hooks).gateway.execute(client_request())
    assert (response.body, len(seen)) == (b"", 1)


async def test_the_model_info_of_the_registry_reaches_the_thinking_plugin():
    own = thinker("own")
    view = FakePlugin(
        id="own",
        hooks={"executor.execute": answering()},
        providers=["own"],
        models=[ModelInfo(id="deep", context_length=5)],
    )
    await world(own, view, config=compat_config()).gateway.execute(client_request(model="deep(low)"))
    assert own.seen("thinking.apply")[0].model.context_length == 5

"""Which models plugins add to lists: catalogues of a provider, and sources of credentials (spec credentials 2.2)."""

import msgspec
import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, ProviderKey
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.errors import RequestError, to_error_body
from host.runtime.handle import PluginState
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import ModelInfo, ThinkingSupport
from pluginabi.payloads.credentials import CredentialSourceResponse
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.models import ModelListResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, compat_config, executor, world

GEMINI = ExecutorRegistration(input_formats=("openai",), output_formats=("openai",))


def infos(*names: str) -> list[ModelInfo]:
    return [ModelInfo(id=name) for name in names]


def catalogue(*names: str, **fields) -> FakePlugin:
    """A plugin that lists models for a provider that another one executes."""
    hooks = {"model.static": lambda _: ModelListResponse()}
    return FakePlugin(**{"id": "catalogue", "hooks": hooks, "providers": ["gemini"], "models": infos(*names), **fields})


def source(*names: str) -> FakePlugin:
    hooks = {"credential_source.next": lambda _: CredentialSourceResponse()}
    return FakePlugin(id="source", hooks=hooks, providers=["gemini"], models=infos(*names), priority=9)


def shown(w: World) -> list[str]:
    return [info.id for info in w.gateway.state.listing()]


async def test_a_plugin_without_an_executor_lists_models_that_the_providers_keys_serve():
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=infos("g-1"))
    w = world(runs, catalogue("g-2", "G-1", priority=9), config=Config(gemini_api_key=[ProviderKey(api_key="k")]))
    assert shown(w) == ["g-1", "g-2"]
    await w.gateway.execute(client_request(model="g-2"))
    assert [seen.model for seen in runs.seen("executor.execute")] == ["g-2"]


def test_a_catalogue_makes_no_provider_that_nobody_executes_servable():
    assert shown(world(executor(answering()), catalogue("g-2"), config=compat_config())) == ["m"]


async def test_models_of_a_provider_that_nobody_executes_are_not_listed_and_refused_with_what_to_do():
    config = msgspec.structs.replace(
        compat_config(), vertex_api_key=[ProviderKey(api_key="v", models=[ModelEntry(name="v-up", alias="v-1")])]
    )
    w = world(executor(answering()), config=config)
    assert shown(w) == ["m"]
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request(model="v-1"))
    body = refused.value.body
    assert (body.http_status, body.code) == (500, "executor_not_found")
    assert "no plugin that runs executes the provider 'vertex'" in body.message
    (vertex,) = (it for it in w.gateway.state.pool.credentials if it.provider == "vertex")
    health = w.gateway.state.health_of(vertex.id)
    assert health.unavailable
    assert health.status_message == "no plugin that runs executes the provider 'vertex'"


async def test_a_model_of_two_providers_is_served_by_the_one_that_is_executed():
    models = [ModelEntry(name="m", alias="m")]
    config = msgspec.structs.replace(compat_config(), vertex_api_key=[ProviderKey(api_key="v", models=models)])
    w = world(executor(answering()), config=config)
    assert shown(w) == ["m"]
    assert (await w.gateway.execute(client_request())).status == 200


def test_models_of_a_provider_whose_plugin_is_down_stay_listed():
    down = executor(answering())
    down.handle.state = PluginState.BACKOFF
    assert shown(world(down, config=compat_config())) == ["m"]


async def test_models_that_a_source_hands_out_credentials_for_are_listed_and_stay_the_sources():
    asked = source("remote-1", "M")
    w = world(executor(answering()), asked, config=compat_config())
    assert shown(w) == ["m", "remote-1"]
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request(model="remote-1"))
    assert to_error_body(refused.value).code == "auth_not_found"
    assert len(asked.seen("credential_source.next")) == 1


def test_a_source_says_nothing_about_what_local_keys_of_the_provider_serve():
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=infos("g-1"))
    w = world(runs, source("g-9"), config=Config(gemini_api_key=[ProviderKey(api_key="k")]))
    assert shown(w) == ["g-1", "g-9"]
    assert not w.gateway.state.plan("g-9", method="executor.execute", source="openai", wanted="openai").known


def test_a_configured_model_takes_what_it_does_not_say_from_the_plugins_model_of_that_name():
    thinking = ThinkingSupport(min=128, max=32768)
    known = ModelInfo(
        id="g-1", thinking=thinking, input_token_limit=9, output_token_limit=7, supported_input_modalities=("text",)
    )
    models = [
        ModelEntry(name="G-1(low)", alias="a"),
        ModelEntry(name="g-1", alias="b", max_context_length=5, input_modalities=(" Text ", "IMAGE", "text")),
        ModelEntry(name="g-1", alias="c", max_context_length=-1, thinking={"levels": ["low"]}, display_name=" See "),
        ModelEntry(name="unknown"),
    ]
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=[known])
    w = world(runs, config=Config(gemini_api_key=[ProviderKey(api_key="k", models=models)]))
    a, b, c, unknown = w.gateway.state.listing()
    assert (a.thinking, a.input_token_limit, a.output_token_limit, a.context_length) == (thinking, 9, 7, None)
    assert (b.context_length, b.input_token_limit, b.output_token_limit) == (5, None, 7)
    assert (b.supported_input_modalities, a.supported_input_modalities) == (("text", "image"), ("text",))
    assert (c.thinking.levels, c.thinking.max, c.display_name) == (["low"], 32768, "See")
    assert (c.context_length, c.input_token_limit) == (None, 9)
    assert (unknown.id, unknown.thinking, unknown.display_name) == ("unknown", None, "unknown")


def test_models_of_compatible_providers_keep_their_own_levels_where_nobody_knows_better():
    provider = CompatProvider(
        name="acme",
        api_key_entries=[CompatKey(api_key="k")],
        models=[ModelEntry(name="m"), ModelEntry(name="i", image=True)],
    )
    w = world(executor(lambda _: ExecutorResponse()), config=Config(openai_compatibility=[provider]))
    image, chat = w.gateway.state.listing()
    assert (image.type, image.thinking) == ("openai-image", None)
    assert (chat.type, tuple(chat.thinking.levels)) == ("openai-compatibility", ("low", "medium", "high"))


def fail(w: World, status: int, *, model: str, key: int = 0) -> None:
    pool = w.gateway.state.pool
    credential = sorted(pool.credentials, key=lambda it: it.id)[key]
    pool.failed(credential, model, classify(ErrorBody(http_status=status)), cause=NO_CAUSE)


async def test_auto_is_the_newest_model_that_somebody_can_serve_now():
    dated = [ModelInfo(id=name, created=when) for name, when in (("new", 3), ("old", 2), ("gpt-image-2", 9))]
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=dated)
    w = world(runs, config=Config(gemini_api_key=[ProviderKey(api_key="k")]))
    for asked, served in (("auto", "new"), ("auto(high)", "new")):
        await w.gateway.execute(client_request(model=asked))
        assert runs.seen("executor.execute")[-1].model == served
    fail(w, 401, model="new")
    await w.gateway.execute(client_request(model="auto"))
    assert runs.seen("executor.execute")[-1].model == "old"
    w.clock.now_s += 1800
    await w.gateway.execute(client_request(model="auto"))
    assert runs.seen("executor.execute")[-1].model == "new"


async def test_auto_with_nobody_free_is_refused_like_the_newest_model_that_can_be_reached():
    dated = [ModelInfo(id=name, created=when) for name, when in (("new", 3), ("old", 2))]
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=dated)
    w = world(runs, config=Config(gemini_api_key=[ProviderKey(api_key="k")]))
    for model in ("new", "old"):
        fail(w, 429, model=model)
    with pytest.raises(RequestError) as refused:
        await w.gateway.execute(client_request(model="auto"))
    assert to_error_body(refused.value).details["model"] == "new"


async def test_auto_passes_over_models_that_the_client_cannot_reach():
    speaks = ExecutorRegistration(input_formats=("claude",), output_formats=("claude",))
    far = executor(answering(), id="far", providers=["far"], executor=speaks, models=[ModelInfo(id="far-1", created=9)])
    runs = executor(answering(), id="gemini", providers=["gemini"], executor=GEMINI, models=infos("g-1"))
    w = world(far, runs, config=Config(gemini_api_key=[ProviderKey(api_key="k")]))
    await w.gateway.execute(client_request(model="auto"))
    assert [seen.model for seen in runs.seen("executor.execute")] == ["g-1"]


async def test_the_list_is_made_anew_when_an_old_limit_stops_to_count():
    w = world(executor(answering()), config=compat_config(keys=("k1", "k2")))
    pool = w.gateway.state.pool
    first = sorted(pool.credentials, key=lambda it: it.id)[0]
    hour = classify(ErrorBody(http_status=429, retry_after_ms=3_600_000))
    pool.failed(first, "m", hour, cause=NO_CAUSE)
    fail(w, 401, model="m", key=1)
    assert shown(w) == []
    w.clock.now_s += 299.9
    assert shown(w) == []
    w.clock.now_s += 0.2
    assert shown(w) == ["m"]


@pytest.mark.parametrize("model", ["m" * 300, f"m({'9' * 300})"])
async def test_plans_of_very_long_names_are_not_kept(model):
    w = world(executor(answering()), config=compat_config())
    w.gateway.state.plan(model, method="executor.execute", source="openai", wanted="openai")
    assert w.gateway.state.plans == {}

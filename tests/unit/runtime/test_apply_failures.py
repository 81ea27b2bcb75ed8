"""Plugins that fail while the configuration is applied, and what registrations may say."""

import asyncio
from typing import Any

import pytest

from host.config.model import PluginPolicy, PluginSection
from host.runtime.handle import PluginState, Reply
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.lifecycle import ExecutorRegistration, FrontendAuthRegistration, RegisterResponse
from pluginabi.payloads.models import ModelListResponse
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.registry import route, routers
from tests.support.runtime import Bench, Script

# -- what fails


async def test_a_plugin_that_does_not_start_stays_visible_and_its_hooks_stay_in_the_snapshot(stage: Bench):
    manifest = '[on_error]\n"request.intercept_before" = "fail"\n'
    stage.process_plugin("a", Script(start_error="cannot be executed"), manifest=manifest)
    stage.process_plugin("b")
    snapshot = await stage.registry.apply(stage.config(a={}, b={}))
    assert routers(snapshot) == ["b"]
    (guard,) = snapshot.implementers("request.intercept_before")
    assert (guard.plugin_id, guard.on_error) == ("a", "fail")
    with pytest.raises(PluginTransportError) as caught:
        await stage.invoker.call(guard, lambda _: ModelRouteRequest(), None)
    assert (caught.value.code, caught.value.http_status) == ("plugin_unavailable", 502)
    assert (stage.status("a").state, "cannot be executed" in stage.status("a").reason) == ("failed", True)
    assert stage.registry.unready_guards() == ["a"]


async def test_a_provider_that_is_down_does_not_make_the_gateway_unready(stage: Bench):
    stage.process_plugin("a", Script(capabilities=("executor.execute",)))
    await stage.registry.apply(stage.config(a={}))
    stage.made[0].state = PluginState.BACKOFF
    assert stage.registry.unready_guards() == []


async def test_a_guard_keeps_the_gateway_unready_only_while_it_is_down(stage: Bench):
    policy = PluginPolicy(on_error={"request.intercept_before": "fail"})
    stage.process_plugin("a", Script(capabilities=("request.intercept_before",)))
    await stage.registry.apply(stage.config(a={}, policies={"a": policy}))
    assert stage.registry.unready_guards() == []
    stage.made[0].state = PluginState.BACKOFF
    assert stage.registry.unready_guards() == ["a"]


async def test_a_plugin_whose_policy_cannot_be_followed_is_blocked_with_the_reason(stage: Bench):
    stage.process_plugin("a", manifest='[on_error]\n"model.route" = "fail"\n')
    bad = {"a": PluginPolicy(permissions=("htpp",))}
    snapshot = await stage.registry.apply(stage.config(a={}, policies=bad))
    assert stage.made == []
    assert routers(snapshot) == ["a"]
    assert stage.status("a").state == "failed"
    assert "'htpp' is no permission" in stage.status("a").reason
    with pytest.raises(PluginTransportError):
        await route(stage, snapshot, "a")
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert stage.status("a").state == "ready"


async def test_a_secret_that_cannot_be_found_blocks_a_new_plugin_and_keeps_a_running_one(stage: Bench):
    stage.process_plugin("a")
    missing = {"token": {"env": "NOT_SET_ANYWHERE"}}
    await stage.registry.apply(stage.config(a=missing))
    assert "NOT_SET_ANYWHERE is not set" in stage.status("a").reason
    await stage.registry.apply(stage.config(a={"token": "x"}))
    snapshot = await stage.registry.apply(stage.config(a=missing))
    assert stage.status("a").state == "ready"
    assert "NOT_SET_ANYWHERE" in stage.status("a").reason
    assert (await route(stage, snapshot, "a")).failed_open is False


async def test_a_capability_that_hello_does_not_have_is_refused(stage: Bench):
    stage.process_plugin("a", Script(registration=RegisterResponse(capabilities=["model.route", "scheduler.pick"])))
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert "scheduler.pick, which its hello does not" in stage.status("a").reason
    assert stage.made[0].state is PluginState.STOPPED
    assert routers(snapshot) == []


async def test_an_unknown_input_in_hello_is_refused(stage: Bench):
    stage.process_plugin("a", Script(inputs={"model.route": ("everything",)}))
    await stage.registry.apply(stage.config(a={}))
    assert "'everything' is no input" in stage.status("a").reason


async def test_L18_a_registration_without_hooks_contributes_nothing_and_says_so(stage: Bench):
    stage.process_plugin("a", Script(capabilities=("plugin.register",)))
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert dict(snapshot.bindings) == {}
    assert "declares no hooks" in stage.status("a").reason


async def test_fewer_capabilities_than_hello_are_those_in_effect(stage: Bench):
    script = Script(
        capabilities=("model.route", "usage.handle", "future.method"),
        registration=RegisterResponse(capabilities=["usage.handle"]),
    )
    stage.process_plugin("a", script)
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert set(snapshot.bindings) == {"usage.handle"}


async def test_a_capability_of_a_newer_contract_is_left_out(stage: Bench):
    stage.process_plugin("a", Script(capabilities=("model.route", "future.method", "plugin.shutdown")))
    assert set((await stage.registry.apply(stage.config(a={}))).bindings) == {"model.route"}


async def test_F102_an_exclusive_flag_without_the_capability_is_ignored(stage: Bench):
    registration = RegisterResponse(frontend_auth=FrontendAuthRegistration(id="x", exclusive=True))
    stage.process_plugin("a", Script(registration=registration))
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert snapshot.plugins["a"].frontend_auth is None


async def test_F101_a_frontend_auth_plugin_is_registered_in_every_state(stage: Bench):
    registration = RegisterResponse(frontend_auth=FrontendAuthRegistration(exclusive=True))
    script = Script(capabilities=("frontend_auth.authenticate",), registration=registration)
    stage.process_plugin("a", script)
    await stage.registry.apply(stage.config(a={}))
    stage.made[0].state = PluginState.BACKOFF
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert snapshot.plugins["a"].frontend_auth == FrontendAuthRegistration(id="a", exclusive=True)
    assert [binding.plugin_id for binding in snapshot.implementers("frontend_auth.authenticate")] == ["a"]


async def test_the_view_holds_what_was_registered(stage: Bench):
    executor = ExecutorRegistration(input_formats=["openai"], output_formats=["openai"], scope="static")
    registration = RegisterResponse(
        providers=[" Acme ", "acme-*"], executor=executor, thinking_provider="acme", models=[ModelInfo(id="m")]
    )
    stage.process_plugin("a", Script(capabilities=("executor.execute",), registration=registration))
    view = (await stage.registry.apply(stage.config(a={}))).plugins["a"]
    assert (view.providers, view.executor, view.thinking_provider) == (("acme", "acme-*"), executor, "acme")
    assert [model.id for model in view.models] == ["m"]
    assert (view.version, view.bundled) == ("1.0.0", False)


async def test_an_exact_provider_key_beats_a_pattern_and_then_priority_decides(stage: Bench):
    for name, keys in (("a", ["x-*"]), ("b", ["x-1"]), ("c", ["x-*", "y"])):
        stage.process_plugin(name, Script(registration=RegisterResponse(providers=keys)))
    sections = {name: PluginSection(enabled=True, priority=rank) for name, rank in (("a", 1), ("b", 0), ("c", 2))}
    snapshot = await stage.registry.apply(stage.config(**sections))
    found = {key: snapshot.executor_of_provider(key) for key in ("x-1", "x-2", "y", "z")}
    assert {key: view.plugin_id if view else None for key, view in found.items()} == {
        "x-1": "b",
        "x-2": "c",
        "y": "c",
        "z": None,
    }


@pytest.mark.parametrize(
    ("capabilities", "method"),
    [
        (("model.register", "model.static"), "model.static"),
        (("model.register",), "model.register"),
    ],
)
async def test_models_come_from_model_static_rather_than_model_register(
    stage: Bench, capabilities: tuple[str, ...], method: str
):
    models = [ModelInfo(id=" a "), ModelInfo(id=" ")]
    answer = Reply(result=ModelListResponse(provider=" Acme ", models=models))
    name = method.replace(".", "_")
    stage.process_plugin("a", Script(capabilities=capabilities, answers={name: answer}))
    view = (await stage.registry.apply(stage.config(a={}))).plugins["a"]
    assert [called for called, _ in stage.made[0].calls] == [method]
    assert ([model.id for model in view.models], view.providers) == (["a"], ("acme",))


@pytest.mark.parametrize(
    "answer",
    [
        Reply(result=ModelListResponse(models=[ModelInfo(id="a")])),
        Reply(result=ModelListResponse(provider="p")),
        PluginError("no list"),
    ],
)
async def test_a_model_list_without_provider_or_models_registers_nothing(stage: Bench, answer: Any):
    stage.process_plugin("a", Script(capabilities=("model.static",), answers={"model_static": answer}))
    view = (await stage.registry.apply(stage.config(a={}))).plugins["a"]
    assert (view.models, view.providers) == ((), ())
    assert stage.status("a").state == "ready"


async def test_an_executor_beats_a_plugin_that_only_names_the_provider_whatever_their_priorities(stage: Bench):
    stage.process_plugin("lists", Script(registration=RegisterResponse(providers=["x"])))
    stage.process_plugin(
        "runs", Script(capabilities=("executor.execute",), registration=RegisterResponse(providers=["x*"]))
    )
    sections = {"lists": PluginSection(enabled=True, priority=9), "runs": PluginSection(enabled=True)}
    snapshot = await stage.registry.apply(stage.config(**sections))
    view = snapshot.executor_of_provider("x")
    assert view is not None and view.plugin_id == "runs"


def listing(*names: str) -> Reply:
    return Reply(result=ModelListResponse(provider="p", models=[ModelInfo(id=name) for name in names]))


async def test_models_are_asked_for_again_and_what_changed_is_published(stage: Bench):
    stage.process_plugin("a", Script(capabilities=("model.static",), answers={"model_static": listing("a")}))
    await stage.registry.apply(stage.config(a={}))
    answers = stage.made[0].answers
    published: list[Any] = []
    stage.registry.on_change = published.append
    for answer in (listing("a"), PluginError("busy")):
        answers["model_static"] = answer
        await stage.registry.refresh_models()
    assert published == []
    answers["model_static"] = listing("b")
    await stage.registry.refresh_models()
    (snapshot,) = published
    assert [model.id for model in snapshot.plugins["a"].models] == ["b"]


async def test_an_answer_that_comes_after_the_plugin_was_replaced_changes_nothing(stage: Bench):
    asked, go = asyncio.Event(), asyncio.Event()
    answers: dict[str, Any] = {"model_static": listing("a")}
    stage.process_plugin("a", Script(capabilities=("model.static",), answers=answers))
    await stage.registry.apply(stage.config(a={}))

    async def late(*_: Any) -> Reply:
        asked.set()
        await go.wait()
        return listing("old")

    stage.made[0].answers["model_static"] = late
    answers["model_static"] = listing("new")
    refreshing = asyncio.create_task(stage.registry.refresh_models())
    async with asyncio.timeout(60):
        await asked.wait()
        # A slow answer holds up no reload.
        await stage.registry.reload("a")
        go.set()
        await refreshing
    assert [model.id for model in stage.registry.snapshot.plugins["a"].models] == ["new"]

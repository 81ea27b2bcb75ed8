"""Plugins follow the configuration."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from host.config.model import Config, PluginPolicy, Plugins, PluginSection, ProviderKey, Timeouts
from host.runtime.bundled import bundled_needed
from host.runtime.handle import PluginSnapshot, PluginState, Reply
from host.runtime.scope import RequestScope
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.lifecycle import ExecutorRegistration, FrontendAuthRegistration, RegisterResponse
from pluginabi.payloads.models import ModelListResponse
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import Bench, Script, bench, plugin_folder

ON = PluginSection(enabled=True)


@pytest.fixture
async def stage(tmp_path: Path):
    async with bench(tmp_path) as made:
        yield made


def routers(snapshot: PluginSnapshot) -> list[str]:
    return [binding.plugin_id for binding in snapshot.implementers("model.route")]


async def route(stage: Bench, snapshot: PluginSnapshot, plugin_id: str) -> Any:
    binding = snapshot.binding(plugin_id, "model.route")
    assert binding is not None
    return await stage.invoker.call(binding, lambda _: ModelRouteRequest(), RequestScope(request_id="r"))


async def settled(stage: Bench) -> None:
    """Everything that was set going has been done: drains and refreshes."""
    gc.collect()
    async with asyncio.timeout(10):
        for _ in range(20):
            await asyncio.sleep(0)


# -- what runs


async def test_L01_an_empty_configuration_runs_nothing(stage: Bench):
    snapshot = await stage.registry.apply(Config(directory=str(stage.directory)))
    assert (dict(snapshot.bindings), dict(snapshot.plugins)) == ({}, {})
    assert stage.made == []


async def test_L07_a_discovered_plugin_that_is_not_configured_is_listed_and_never_started(stage: Bench):
    stage.process_plugin("a")
    snapshot = await stage.registry.apply(stage.config())
    assert routers(snapshot) == []
    assert stage.made == []
    status = stage.status("a")
    assert (status.state, status.enabled) == ("discovered", False)
    assert "jackfield plugins enable a" in status.reason


async def test_L08_with_plugins_switched_off_no_dropped_in_plugin_runs(stage: Bench):
    stage.process_plugin("a")
    snapshot = await stage.registry.apply(stage.config(enabled=False, a={}))
    assert stage.made == []
    assert dict(snapshot.plugins) == {}
    assert stage.status("a").reason == "plugins.enabled is false"


async def test_L08_bundled_plugins_are_outside_of_the_switch(tmp_path: Path):
    async with bench(tmp_path, bundled=True) as stage:
        config = Config(directory=str(tmp_path), claude_api_key=(ProviderKey(api_key="k"),))
        snapshot = await stage.registry.apply(config)
        assert set(snapshot.plugins) == {"claude"}
        assert snapshot.plugins["claude"].bundled
        assert stage.status("claude").permissions_granted == ("http",)
        assert stage.status("gemini").state == "discovered"


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, set()),
        ({"claude_api_key": (ProviderKey(),)}, {"claude"}),
        ({"gemini_api_key": (ProviderKey(),)}, {"gemini"}),
        ({"demo": True}, {"echo", "demo-router"}),
        ({"plugins": Plugins(configs={"limits": ON, "other": PluginSection()})}, {"limits"}),
    ],
)
def test_a_bundled_plugin_runs_when_its_section_needs_it(fields: Any, needed: set[str]):
    assert bundled_needed(Config(**fields)) == needed


async def test_L27_plugins_are_ordered_by_priority_and_then_by_id(stage: Bench):
    for name in "bac":
        stage.process_plugin(name)
    sections = {
        name: PluginSection(enabled=True, priority=priority) for name, priority in (("b", 10), ("a", 10), ("c", 20))
    }
    snapshot = await stage.registry.apply(stage.config(**sections))
    assert routers(snapshot) == ["c", "a", "b"]
    assert list(snapshot.plugins) == ["c", "a", "b"]


async def test_implementers_leave_out_skipped_plugins(stage: Bench):
    stage.process_plugin("a")
    stage.process_plugin("b")
    snapshot = await stage.registry.apply(stage.config(a={}, b={}))
    assert [binding.plugin_id for binding in snapshot.implementers("model.route", frozenset({"a"}))] == ["b"]
    assert snapshot.implementers("scheduler.pick") == ()


async def test_L06_the_plugin_gets_its_section_once_as_values_and_as_text(stage: Bench):
    stage.process_plugin("a", manifest='permissions = ["kv", "http"]\n')
    section = PluginSection(enabled=True, priority=7, config={"x": [1]}, config_yaml="enabled: true\nx: [1]\n")
    config = stage.config(a=section, policies={"a": PluginPolicy(permissions=("kv", "model"))})
    await stage.registry.apply(config)
    (request,) = stage.made[0].requests
    assert request.config == {"x": [1]}
    assert request.config_yaml == "enabled: true\nx: [1]\n"
    assert request.permissions == ("kv",)
    assert request.host.name == "jackfield" and request.host.version


async def test_references_are_resolved_for_the_plugin_and_masked_for_everybody_else(
    stage: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PLUGIN_TOKEN", "from-env")
    stage.process_plugin("a", manifest='[[config]]\nname = "password"\nsecret = true\n')
    await stage.registry.apply(stage.config(a={"token": {"env": "PLUGIN_TOKEN"}, "password": "p"}))
    assert stage.made[0].requests[0].config == {"token": "from-env", "password": "p"}
    assert stage.status("a").config == {"token": {"env": "PLUGIN_TOKEN"}, "password": "***"}


async def test_a_policy_reaches_the_binding(stage: Bench):
    stage.process_plugin("a", manifest='permissions = ["kv"]\n[inputs]\n"model.route" = ["body:/tools"]\n')
    policy = PluginPolicy(permissions=("kv",), timeouts={"model.route": "123ms"}, on_error={"model.route": "fail"})
    snapshot = await stage.registry.apply(stage.config(a={}, policies={"a": policy}))
    binding = snapshot.binding("a", "model.route")
    assert binding is not None
    assert (binding.timeout_s, binding.on_error, binding.permissions) == (0.123, "fail", {"kv"})
    assert binding.inputs.body_pointers == ("/tools",)
    assert binding.may("kv") and not binding.may("http")


async def test_streaming_methods_have_the_operators_idle_timeout(stage: Bench):
    stage.process_plugin("a", Script(capabilities=("executor.execute_stream", "executor.execute")))
    config = stage.config(a={})
    config = Config(directory=config.directory, plugins=config.plugins, timeouts=Timeouts(first_byte="9s", idle="4s"))
    snapshot = await stage.registry.apply(config)
    streaming, unary = (snapshot.binding("a", f"executor.{name}") for name in ("execute_stream", "execute"))
    assert streaming is not None and unary is not None
    assert (streaming.timeout_s, streaming.idle_timeout_s) == (9.0, 4.0)
    assert (unary.timeout_s, unary.idle_timeout_s) == (9.0, None)


# -- what changes


async def test_an_unchanged_configuration_sends_nothing(stage: Bench):
    stage.process_plugin("a", Script(reconfigures=True))
    first = await stage.registry.apply(stage.config(a={"x": 1}))
    second = await stage.registry.apply(stage.config(a={"x": 1}))
    assert len(stage.made) == 1
    assert len(stage.made[0].requests) == 1
    assert second.plugins["a"].handle is first.plugins["a"].handle


async def test_the_hosts_own_keys_take_effect_without_telling_the_plugin(stage: Bench):
    stage.process_plugin("a", Script(reconfigures=True))
    stage.process_plugin("b")
    await stage.registry.apply(stage.config(a={}, b={}))
    policy = PluginPolicy(timeouts={"model.route": "77ms"})
    section = PluginSection(enabled=True, priority=-1, config_yaml="priority: -1\n")
    snapshot = await stage.registry.apply(stage.config(a=section, b={}, policies={"a": policy}))
    assert routers(snapshot) == ["b", "a"]
    binding = snapshot.binding("a", "model.route")
    assert binding is not None and binding.timeout_s == 0.077
    assert len(stage.made) == 2
    assert len(stage.made[0].requests) == 1


async def test_a_changed_configuration_is_reconfigured_where_the_plugin_can(stage: Bench):
    script = stage.process_plugin("a", Script(reconfigures=True))
    first = await stage.registry.apply(stage.config(a={"x": 1}))
    script.registration = RegisterResponse(providers=["new"])
    second = await stage.registry.apply(stage.config(a={"x": 2}))
    assert len(stage.made) == 1
    assert [request.config for request in stage.made[0].requests] == [{"x": 1}, {"x": 2}]
    assert second.plugins["a"].providers == ("new",)
    assert first.plugins["a"].providers == ()


async def test_L17_a_failed_reconfigure_keeps_the_last_good_registration_and_is_not_repeated(stage: Bench):
    script = stage.process_plugin("a", Script(reconfigures=True, registration=RegisterResponse(providers=["good"])))
    await stage.registry.apply(stage.config(a={"x": 1}))
    script.reconfigure_error = PluginError("x must be 1", http_status=400)
    for _ in range(2):
        snapshot = await stage.registry.apply(stage.config(a={"x": 2}))
        assert snapshot.plugins["a"].providers == ("good",)
        assert (await route(stage, snapshot, "a")).failed_open is False
    assert [request.config for request in stage.made[0].requests] == [{"x": 1}, {"x": 2}]
    assert "x must be 1" in stage.status("a").reason
    assert stage.status("a").state == "ready"
    script.reconfigure_error = None
    await stage.registry.apply(stage.config(a={"x": 3}))
    assert stage.status("a").reason == ""


async def test_a_permission_taken_back_is_gone_even_when_the_plugin_refuses_to_hear_it(stage: Bench):
    script = stage.process_plugin("a", Script(reconfigures=True), manifest='permissions = ["kv"]\n')
    granted = {"a": PluginPolicy(permissions=("kv",))}
    await stage.registry.apply(stage.config(a={}, policies=granted))
    script.reconfigure_error = PluginError("I want it")
    snapshot = await stage.registry.apply(stage.config(a={}, policies={"a": PluginPolicy()}))
    binding = snapshot.binding("a", "model.route")
    assert binding is not None and binding.permissions == frozenset()
    assert stage.callbacks.grants["a"] == frozenset()


async def test_a_plugin_that_cannot_reconfigure_is_upgraded_and_the_old_one_drains(stage: Bench):
    stage.process_plugin("a")
    old_snapshot = await stage.registry.apply(stage.config(a={"x": 1}))
    new_snapshot = await stage.registry.apply(stage.config(a={"x": 2}))
    old, new = stage.made
    assert (old.generation, new.generation) == (1, 2)
    assert new_snapshot.plugins["a"].handle is new
    await settled(stage)
    assert old.state is PluginState.READY, "a request still holds the old snapshot"
    assert stage.status("a").draining == 1
    assert (await route(stage, old_snapshot, "a")).failed_open is False
    assert len(old.calls) == 1
    del old_snapshot
    await settled(stage)
    assert old.state is PluginState.STOPPED
    assert stage.status("a").draining == 0


async def test_a_failed_upgrade_keeps_the_old_generation(stage: Bench):
    script = stage.process_plugin("a")
    await stage.registry.apply(stage.config(a={"x": 1}))
    script.start_error = "no such file"
    for _ in range(2):
        snapshot = await stage.registry.apply(stage.config(a={"x": 2}))
        assert snapshot.plugins["a"].handle is stage.made[0]
        assert (await route(stage, snapshot, "a")).failed_open is False
    assert len(stage.made) == 2, "what failed is not tried again while nothing changed"
    assert "no such file" in stage.status("a").reason
    script.start_error = ""
    snapshot = await stage.registry.apply(stage.config(a={"x": 3}))
    assert snapshot.plugins["a"].handle is stage.made[2]
    assert stage.status("a").reason == ""


async def test_at_most_four_generations_of_a_plugin_live(stage: Bench):
    stage.process_plugin("a")
    held = [await stage.registry.apply(stage.config(a={"x": number})) for number in range(6)]
    await settled(stage)
    assert [made.state for made in stage.made] == [PluginState.STOPPED] * 2 + [PluginState.READY] * 4
    assert len(held) == 6


async def test_L23_disabling_a_plugin_stops_it_alone_and_enabling_starts_it_alone(stage: Bench):
    stage.process_plugin("a")
    stage.process_plugin("b")
    await stage.registry.apply(stage.config(a={}, b={}))
    snapshot = await stage.registry.apply(stage.config(b={}))
    assert routers(snapshot) == ["b"]
    await settled(stage)
    a, b = stage.made
    assert (a.state, b.state) == (PluginState.STOPPED, PluginState.READY)
    assert stage.status("a").state == "discovered"
    snapshot = await stage.registry.apply(stage.config(a={}, b={}))
    assert routers(snapshot) == ["a", "b"]
    assert len(stage.made) == 3
    assert len(b.requests) == 1


async def test_L16_a_plugin_switched_off_and_on_is_in_the_snapshot_only_while_on(stage: Bench):
    stage.process_plugin("a")
    seen = []
    for enabled in (True, False, True):
        section = PluginSection(enabled=enabled)
        seen.append(routers(await stage.registry.apply(stage.config(a=section))))
    assert seen == [["a"], [], ["a"]]


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


# -- one at a time


async def test_L26_while_a_plugin_registers_snapshots_and_states_answer_and_other_changes_wait(
    stage: Bench, within: Any
):
    stage.process_plugin("a")
    first = await stage.registry.apply(stage.config(a={}))
    slow = stage.process_plugin("b", Script(gate=asyncio.Event()))
    assert slow.gate is not None
    applying = asyncio.ensure_future(stage.registry.apply(stage.config(a={}, b={})))
    await within(slow.starting.wait())
    assert stage.registry.snapshot is first
    assert (await route(stage, first, "a")).failed_open is False
    assert {row.id: row.state for row in stage.registry.statuses()} == {"a": "ready", "b": "starting"}
    second = asyncio.ensure_future(stage.registry.apply(stage.config(b={})))
    stopping = asyncio.ensure_future(stage.registry.stop())
    await settled(stage)
    assert not second.done() and not stopping.done()
    slow.gate.set()
    assert routers(await within(applying)) == ["a", "b"]
    assert routers(await within(second)) == ["b"]
    await within(stopping)


async def test_plugins_start_side_by_side(stage: Bench, within: Any):
    scripts = [stage.process_plugin(name, Script(gate=asyncio.Event())) for name in "ab"]
    applying = asyncio.ensure_future(stage.registry.apply(stage.config(a={}, b={})))
    for script in scripts:
        await within(script.starting.wait())
    for script in scripts:
        assert script.gate is not None
        script.gate.set()
    assert routers(await within(applying)) == ["a", "b"]


async def test_L29_changing_what_the_list_shows_changes_nothing(stage: Bench):
    stage.process_plugin("a")
    await stage.registry.apply(stage.config(a={"x": 1}))
    row = stage.status("a")
    with pytest.raises(AttributeError):
        row.state = "other"
    row.config["x"] = 2
    assert stage.status("a").config == {"x": 1}


async def test_a_process_that_registers_anew_by_itself_changes_the_snapshot(stage: Bench, within: Any):
    stage.process_plugin("a", Script(registration=RegisterResponse(providers=["old"])))
    await stage.registry.apply(stage.config(a={}))
    stage.made[0].registration = RegisterResponse(providers=["new"])
    stage.changed(stage.made[0])
    await settled(stage)
    (snapshot,) = stage.changes
    assert snapshot.plugins["a"].providers == ("new",)
    assert stage.registry.snapshot is snapshot


async def test_a_restart_that_declares_the_same_changes_nothing(stage: Bench):
    stage.process_plugin("a")
    before = await stage.registry.apply(stage.config(a={}))
    stage.changed(stage.made[0])
    await settled(stage)
    assert stage.changes == []
    assert stage.registry.snapshot is before


async def test_a_plugin_that_becomes_ready_late_joins_the_snapshot(stage: Bench):
    script = stage.process_plugin("a", Script(start_error="not yet"))
    snapshot = await stage.registry.apply(stage.config(a={}))
    assert routers(snapshot) == []
    script.start_error = ""
    await stage.made[0].start()
    stage.changed(stage.made[0])
    await settled(stage)
    assert routers(stage.changes[-1]) == ["a"]
    assert stage.status("a").reason == ""


# -- by hand


async def test_L24_an_unknown_or_blank_plugin_can_be_neither_reloaded_nor_reset(stage: Bench):
    for plugin_id in ("", "nothing"):
        with pytest.raises(KeyError):
            await stage.registry.reload(plugin_id)
        with pytest.raises(KeyError):
            await stage.registry.reset(plugin_id)


async def test_reloading_starts_a_new_generation_with_the_files_as_they_are(stage: Bench):
    stage.process_plugin("a")
    await stage.registry.apply(stage.config(a={}))
    folder = stage.directory / "plugins" / "a"
    (folder / "plugin.toml").write_text((folder / "plugin.toml").read_text().replace("1.0.0", "2.0.0"))
    await stage.registry.apply(stage.config(a={}))
    assert stage.status("a").version == "1.0.0", "files count only when told so"
    sentence = await stage.registry.reload("a")
    assert "a 2.0.0 is loaded" in sentence
    assert stage.status("a").version == "2.0.0"
    assert stage.changes[-1].plugins["a"].handle is stage.made[1]


async def test_reloading_something_broken_keeps_what_runs(stage: Bench):
    stage.process_plugin("a")
    await stage.registry.apply(stage.config(a={}))
    (stage.directory / "plugins" / "a" / "plugin.toml").write_text("id = 1")
    assert "goes on as it was" in await stage.registry.reload("a")
    assert stage.status("a").state == "ready"
    assert len(stage.made) == 1
    snapshot = await stage.registry.apply(stage.config(a={}), reload_files=True)
    assert routers(snapshot) == ["a"]


async def test_a_plugin_whose_folder_is_gone_runs_until_files_count(stage: Bench):
    stage.process_plugin("a")
    await stage.registry.apply(stage.config(a={}))
    (stage.directory / "plugins" / "a" / "plugin.toml").unlink()
    assert routers(await stage.registry.apply(stage.config(a={}))) == ["a"]
    assert "its folder is gone" in await stage.registry.reload("a")
    assert routers(await stage.registry.apply(stage.config(a={}), reload_files=True)) == []


async def test_resetting_a_failed_plugin_starts_it_again(stage: Bench):
    script = stage.process_plugin("a", Script(start_error="broken"))
    await stage.registry.apply(stage.config(a={}))
    script.start_error = ""
    assert await stage.registry.reset("a") is True
    assert stage.status("a").state == "ready"
    assert routers(stage.changes[-1]) == ["a"]
    assert await stage.registry.reset("a") is True
    assert len(stage.made) == 2, "a plugin that runs is left alone"


async def test_the_list_shows_broken_and_shadowed_plugins(stage: Bench):
    stage.process_plugin("a")
    plugin_folder(stage.directory / "plugins", "zz-copy").joinpath("plugin.toml").write_text(
        'id = "a"\nversion = "2"\ncommand = ["./run"]\n'
    )
    (stage.directory / "plugins" / "bad").mkdir()
    (stage.directory / "plugins" / "bad" / "plugin.toml").write_text("")
    await stage.registry.apply(stage.config())
    rows = {row.directory.rpartition("/")[2]: (row.id, row.state) for row in stage.registry.statuses()}
    assert rows == {"a": ("a", "discovered"), "zz-copy": ("a", "shadowed"), "bad": ("bad", "broken")}


# -- inside the host


ROUTER = """
class P(Plugin):
    async def model_route(self, request):
        return ModelRouteResponse(reason={!r})
"""


async def test_a_changed_folder_loads_anew_beside_the_old_code(stage: Bench):
    stage.inprocess_plugin("a", ROUTER.format("old"))
    old = await stage.registry.apply(stage.config(a={}, inprocess=["a"]))
    stage.inprocess_plugin("a", ROUTER.format("new"))
    await stage.registry.reload("a")
    answers = [(await route(stage, snapshot, "a")).value.reason for snapshot in (old, stage.registry.snapshot)]
    assert answers == ["old", "new"]


async def test_new_code_that_does_not_load_keeps_the_old(stage: Bench):
    stage.inprocess_plugin("a", ROUTER.format("old"))
    await stage.registry.apply(stage.config(a={}, inprocess=["a"]))
    stage.inprocess_plugin("a", "syntax error here\n")
    assert "SyntaxError" in await stage.registry.reload("a")
    assert (await route(stage, stage.registry.snapshot, "a")).value.reason == "old"


async def test_the_list_shows_who_has_the_hosts_rights(stage: Bench):
    stage.inprocess_plugin("a", ROUTER.format("x"))
    stage.inprocess_plugin("b", ROUTER.format("x"))
    await stage.registry.apply(stage.config(a={}, b={}, inprocess=["a"]))
    a, b = stage.status("a"), stage.status("b")
    assert (a.carrier, a.host_rights) == ("inprocess", True)
    assert (b.carrier, b.host_rights) == ("process", False)
    assert "plugins.policy.b.runtime" in b.reason


async def test_a_guards_class_presets_its_failure_mode(stage: Bench):
    code = "class P(Guard):\n    async def request_intercept_before(self, request): ...\n"
    stage.inprocess_plugin("a", code)
    snapshot = await stage.registry.apply(stage.config(a={}, inprocess=["a"]))
    assert [binding.on_error for binding in snapshot.implementers("request.intercept_before")] == ["fail"]


async def test_stopping_the_registry_stops_everything_and_may_be_repeated(stage: Bench):
    stage.process_plugin("a")
    held = [await stage.registry.apply(stage.config(a={"x": number})) for number in range(3)]
    await stage.registry.stop()
    await stage.registry.stop()
    assert {made.state for made in stage.made} == {PluginState.STOPPED}
    assert len(held) == 3
    assert stage.registry.snapshot.plugins == {}

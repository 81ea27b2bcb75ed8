"""Plugins follow the configuration."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from host.config.model import Config, PluginPolicy, Plugins, PluginSection, ProviderKey, Timeouts
from host.runtime.bundled import bundled_needed
from host.runtime.handle import PluginState
from pluginabi.payloads.lifecycle import RegisterResponse
from tests.support.registry import ON, route, routers, settled
from tests.support.runtime import Bench, Script, bench

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


async def test_L06_L21_the_plugin_gets_its_section_once_as_values_and_as_text(stage: Bench):
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
    assert (streaming.timeout_s, streaming.idle_timeout_s) == (11.0, 4.0)
    assert (unary.timeout_s, unary.idle_timeout_s) == (11.0, None)


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


# -- inside the host


async def test_stopping_the_registry_stops_everything_and_may_be_repeated(stage: Bench):
    stage.process_plugin("a")
    held = [await stage.registry.apply(stage.config(a={"x": number})) for number in range(3)]
    await stage.registry.stop()
    await stage.registry.stop()
    assert {made.state for made in stage.made} == {PluginState.STOPPED}
    assert len(held) == 3
    assert stage.registry.snapshot.plugins == {}

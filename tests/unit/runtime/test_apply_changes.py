"""A changed configuration, changed files, and what an operator does by hand."""

import asyncio

import pytest

from host.config.model import PluginPolicy, PluginSection
from host.runtime import retirement
from host.runtime.handle import PluginState
from pluginabi.errors import PluginError
from pluginabi.payloads.lifecycle import RegisterResponse
from tests.support.registry import route, routers, settled
from tests.support.runtime import Bench, Script, plugin_folder

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
    # What requests of those that had to go still call goes to what served then.
    assert [made.successor for made in stage.made[:2]] == stage.made[3:5]


async def test_an_upgrade_waits_for_the_calls_of_older_generations_instead_of_ending_them(
    stage: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retirement, "ROOM_WAIT_S", 0.0)
    calls_ended = asyncio.Event()
    stage.process_plugin("a", Script(busy=calls_ended))
    for number in range(4):
        await stage.registry.apply(stage.config(a={"x": number}))
    await settled(stage)
    for number in (4, 5):
        await stage.registry.apply(stage.config(a={"x": number}))
        assert len(stage.made) == 4
        assert stage.status("a").reason == "the next version starts when one of 3 older ones has finished its calls"
    assert "starts when one of 3" in await stage.registry.reload("a")
    calls_ended.set()
    await settled(stage)
    assert stage.status("a").reason == ""
    # What was wanted last is loaded, once.
    assert [made.requests[0].config["x"] for made in stage.made] == [0, 1, 2, 3, 5]
    assert stage.changes[-1].plugins["a"].handle is stage.made[-1]


async def test_a_permission_taken_back_is_gone_while_the_upgrade_waits(stage: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retirement, "ROOM_WAIT_S", 0.0)
    stage.process_plugin("a", Script(busy=asyncio.Event()), manifest='permissions = ["kv"]\n')
    granted = {"a": PluginPolicy(permissions=["kv"])}
    for number in range(4):
        await stage.registry.apply(stage.config(a={"x": number}, policies=granted))
    await settled(stage)
    snapshot = await stage.registry.apply(stage.config(a={"x": 4}))
    assert len(stage.made) == 4
    assert snapshot.bindings["model.route"][0].permissions == frozenset()


async def test_a_plugin_that_is_no_longer_wanted_is_not_upgraded_when_there_is_room(
    stage: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retirement, "ROOM_WAIT_S", 0.0)
    calls_ended = asyncio.Event()
    stage.process_plugin("a", Script(busy=calls_ended))
    for number in range(5):
        await stage.registry.apply(stage.config(a={"x": number}))
    await stage.registry.apply(stage.config())
    calls_ended.set()
    await settled(stage)
    assert [made.state for made in stage.made] == [PluginState.STOPPED] * 4


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


# -- by hand


async def test_a_plugin_switched_off_and_on_serves_while_requests_still_hold_its_former_self(stage: Bench):
    answer = "        return ModelRouteResponse(reason='here')\n"
    stage.inprocess_plugin("a", "class P(Plugin):\n    async def model_route(self, request):\n" + answer)
    inside = {"a": PluginPolicy(runtime="inprocess")}
    first = await stage.registry.apply(stage.config(a={}, policies=inside))
    without = await stage.registry.apply(stage.config())
    second = await stage.registry.apply(stage.config(a={}, policies=inside))
    assert (stage.status("a").state, stage.status("a").reason) == ("ready", "")
    assert without.bindings == {}
    former, present = first.plugins["a"].handle, second.plugins["a"].handle
    assert former is not present and former.state is PluginState.READY
    for snapshot in (first, second):
        called = await route(stage, snapshot, "a")
        assert called.value is not None and called.value.reason == "here"


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

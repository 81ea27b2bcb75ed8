"""Real plugin processes over the life of a configuration."""

import asyncio
import gc
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from host.config.model import PluginPolicy
from host.runtime.handle import PluginState, Reply
from host.runtime.scope import RequestScope
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.executor import ExecutorRequest
from pluginabi.payloads.intercept import RequestInterceptRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import Bench, plugin_folder

STREAMER = """
class P(Plugin):
    version_of_code = {!r}
    async def model_route(self, request):
        return ModelRouteResponse(reason=self.version_of_code)
    async def executor_execute_stream(self, request, ctx):
        for number in range(5):
            yield {{"n": number, "v": self.version_of_code}}
            while not await ctx.kv.get(f"go{{number}}"):
                await asyncio.sleep(0)
"""
GUARD = r"""#!/bin/sh
read hello
echo '{"kind":"hello","abi":[1],"schema":1,"plugin":"guard","capabilities":["request.intercept_before"]}'
while read -r line; do
    id=${line#*\"id\":}
    id=${id%%,*}
    echo "{\"kind\":\"result\",\"id\":$id,\"ok\":true,\"result\":{\"headers\":{\"x\":[\"1\"]}}}"
done
"""
# The two versions differ in length: a cached module is recognised as stale only by size and second.
MANIFEST = 'runtime = "process"\nentry = "plugin:P"\npermissions = ["kv"]\n'
GRANTED = {"p": PluginPolicy(permissions=("kv",))}


async def route(stage: Bench, plugin_id: str = "p", request_id: str = "r") -> Any:
    binding = stage.registry.snapshot.binding(plugin_id, "model.route")
    assert binding is not None
    scope = RequestScope(request_id=request_id)
    return (await stage.invoker.call(binding, lambda _: ModelRouteRequest(), scope)).value.reason


async def test_an_open_stream_finishes_in_the_old_process_while_new_calls_go_to_the_new_one(stage: Bench, within: Any):
    stage.inprocess_plugin("p", STREAMER.format("old code"), manifest=MANIFEST)
    snapshot = await stage.registry.apply(stage.config(p={}, policies=GRANTED))
    old = snapshot.plugins["p"].handle
    streaming = snapshot.binding("p", "executor.execute_stream")
    assert streaming is not None
    reply: Reply = await stage.invoker.stream(streaming, lambda _: ExecutorRequest(), None)
    items = aiter(reply.items)
    got = [(await within(anext(items))).body.value()]
    stage.inprocess_plugin("p", STREAMER.format("new"), manifest=MANIFEST)
    assert "is loaded" in await within(stage.registry.reload("p"))
    assert await route(stage) == "new"
    del snapshot, streaming
    gc.collect()
    for number in range(5):
        await stage.store.set("plugin:p", f"go{number}", b"true")
    async with asyncio.timeout(60):
        got += [item.body.value() async for item in items]
    assert got == [{"n": number, "v": "old code"} for number in range(5)]
    drains = [task for task in stage.tasks._tasks if ":drain:p" in task.get_name()]
    if drains:
        await within(asyncio.wait(drains))
    assert old.state is PluginState.STOPPED
    assert stage.status("p").draining == 0


async def test_a_guard_whose_command_is_missing_fails_closed_until_it_is_there(stage: Bench, within: Any):
    manifest = 'command = ["./guard"]\n[on_error]\n"request.intercept_before" = "fail"\n'
    folder = plugin_folder(stage.directory / "plugins", "guard", manifest=manifest)
    snapshot = await stage.registry.apply(stage.config(guard={}))
    (binding,) = snapshot.implementers("request.intercept_before")
    with pytest.raises(PluginTransportError) as caught:
        await stage.invoker.call(binding, lambda _: RequestInterceptRequest(), None)
    assert (caught.value.http_status, caught.value.code) == (502, "plugin_unavailable")
    status = stage.status("guard")
    assert status.state == "failed"
    assert f"{folder / 'guard'} does not exist" in status.reason
    assert stage.registry.unready_guards() == ["guard"]
    program = folder / "guard"
    program.write_text(GUARD)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert await within(stage.registry.reset("guard")) is True
    (binding,) = stage.registry.snapshot.implementers("request.intercept_before")
    answer = await within(stage.invoker.call(binding, lambda _: RequestInterceptRequest(), None))
    assert answer.value.headers == {"x": ["1"]}
    assert stage.registry.unready_guards() == []


async def test_the_environment_of_a_process_holds_what_both_allow_and_no_secret_of_the_host(
    stage: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REGION", "eu")
    monkeypatch.setenv("HOST_SECRET", "s3cret")
    code = """
import os
class P(Plugin):
    async def model_route(self, request):
        return ModelRouteResponse(reason=" ".join(sorted(os.environ)) + " " + os.getcwd())
"""
    manifest = MANIFEST + 'environment = ["REGION", "HOST_SECRET"]\n'
    stage.inprocess_plugin("p", code, manifest=manifest)
    await stage.registry.apply(stage.config(p={}, policies={"p": PluginPolicy(environment=("REGION",))}))
    names = (await route(stage)).split()
    assert "REGION" in names and "JACKFIELD_PLUGIN_DIR" in names
    assert "HOST_SECRET" not in names
    assert Path(names[-1]) == stage.directory / "plugin-data" / "p"


async def test_several_processes_share_the_requests_of_one_plugin(stage: Bench):
    code = """
import os
class P(Plugin):
    async def model_route(self, request):
        return ModelRouteResponse(reason=str(os.getpid()))
"""
    stage.inprocess_plugin("p", code, manifest=MANIFEST)
    await stage.registry.apply(stage.config(p={}, policies={"p": PluginPolicy(instances=2)}))
    by_request = {request_id: await route(stage, request_id=request_id) for request_id in map(str, range(12))}
    again = {request_id: await route(stage, request_id=request_id) for request_id in by_request}
    assert again == by_request
    assert len(set(by_request.values())) == 2
    assert str(os.getpid()) not in by_request.values()


async def test_the_same_code_moves_into_the_host_when_the_operator_says_so(stage: Bench, within: Any):
    code = """
import os
class P(Plugin):
    async def model_route(self, request):
        return ModelRouteResponse(reason=str(os.getpid()))
"""
    stage.inprocess_plugin("p", code, manifest=MANIFEST)
    await stage.registry.apply(stage.config(p={}))
    assert await route(stage) != str(os.getpid())
    await stage.registry.apply(stage.config(p={}, inprocess=["p"]))
    assert await route(stage) == str(os.getpid())
    assert (stage.status("p").carrier, stage.status("p").host_rights) == ("inprocess", True)


async def test_secrets_reach_the_process_and_do_not_show_in_its_logged_output(
    stage: Bench, monkeypatch: pytest.MonkeyPatch, within: Any
):
    monkeypatch.setenv("TOKEN", "top-secret-token")
    code = """
import sys
class P(Plugin):
    async def plugin_register(self, request):
        print("using", request.config["token"], file=sys.stderr, flush=True)
        raise PluginError("cannot log in with " + str(len(request.config["token"])))
"""
    stage.inprocess_plugin("p", code, manifest=MANIFEST)
    await within(stage.registry.apply(stage.config(p={"token": {"env": "TOKEN"}})))
    status = stage.status("p")
    assert "cannot log in with 16" in status.reason
    assert status.stderr
    assert "top-secret-token" not in repr(status)

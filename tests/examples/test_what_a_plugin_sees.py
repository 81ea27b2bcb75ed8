"""A plugin sees the same values of the same types inside the host, as a process, and over gRPC."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from host.app import Proxy
from host.config.load import load_config

PROBE = '''
import msgspec
from pluginapi import *
from pluginapi import serve


def seen(value):
    """Values with the names of their types, all the way down."""
    if isinstance(value, Body):
        return ["body", value.to_bytes().decode()]
    if isinstance(value, msgspec.Struct):
        fields = {name: seen(getattr(value, name)) for name in value.__struct_fields__}
        return [type(value).__name__, {name: field for name, field in fields.items() if field is not None}]
    if isinstance(value, dict):
        return [type(value).__name__, {key: seen(member) for key, member in value.items()}]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [seen(member) for member in value]]
    return None if value is None or value is msgspec.UNSET else [type(value).__name__, value]


class Probe(Plugin):
    inputs = {"model.route": ["body:/tools", "body:/messages/-1", "body"]}
    routed = None

    async def plugin_register(self, request):
        self.registered = seen(request)
        return RegisterResponse(executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)))

    async def model_route(self, request, ctx):
        await ctx.kv.set("routed", {"list": [1, {"a": None}]})
        self.routed = seen(request)
        return ModelRouteResponse(target_kind="self")

    async def executor_execute(self, request, ctx):
        try:
            request.headers["x"] = ()
        except TypeError as error:
            refused = str(error)
        try:
            await ctx.http.do("GET", "http://127.0.0.1/")
        except PluginError as error:
            denied = seen(error.body)
        return ExecutorResponse(body=Body.from_value({
            "registered": self.registered, "routed": self.routed, "executed": seen(request), "refused": refused,
            "denied": denied, "kv": seen(await ctx.kv.get("routed")), "permissions": sorted(ctx.permissions),
            "request_id_matches": ctx.request_id == request.request_id, "plugin_id": ctx.plugin_id,
            "has_deadline": ctx.remaining_s() is not None,
        }))


if __name__ == "__main__":
    serve(Probe)
'''
MANIFEST = """
id = "probe"
version = "1.0.0"
entry = "probe:Probe"
permissions = ["kv"]
"""
CONFIG = """
port: 0
plugins:
  enabled: true
  configs:
    probe:
      enabled: true
      nested: {list: [1, two, {three: 3.0}], empty: {}}
  policy:
    probe:
      runtime: %s
      permissions: [kv]
"""
BODY = {
    "model": "anything",
    "messages": [{"role": "user", "content": "é"}],
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


async def what_a_plugin_sees(tmp_path: Path, runtime: str, protocol: str) -> Any:
    folder = tmp_path / "plugins" / "probe"
    shutil.rmtree(tmp_path / "plugins", ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "probe.py").write_text(PROBE)
    (folder / "plugin.toml").write_text(f'protocol = "{protocol}"\n{MANIFEST}')
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG % runtime)
    proxy = Proxy(load_config(path), config_path=path, watch=False)
    try:
        async with asyncio.timeout(20):
            await proxy.start()
            async with aiohttp.ClientSession() as client:
                headers = {"x-two": "1", "authorization": "Bearer secret", "user-agent": "t"}
                url = f"http://localhost:{proxy.url.rpartition(':')[2]}/v1/chat/completions?q=1&q=2"
                async with client.post(url.replace("localhost", "127.0.0.1"), json=BODY, headers=headers) as response:
                    text = await response.text()
                    assert response.status == 200, text
    finally:
        async with asyncio.timeout(20):
            await proxy.stop()
    return without_the_moment(json.loads(text))


def without_the_moment(value: Any) -> Any:
    """Without the parts that differ from request to request, and without the type of what is empty by default."""
    if value == ["dict", {}]:
        return ["FrozenDict", {}]
    if isinstance(value, dict):
        left = {key: without_the_moment(member) for key, member in value.items()}
        return {key: member for key, member in left.items() if key not in ("request_id", "host")}
    return [without_the_moment(member) for member in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("runtime", "protocol"), [("process", "json"), ("process", "grpc")])
async def test_a_plugin_sees_the_same_inside_the_host_and_as_a_process(tmp_path, runtime, protocol):
    inside = await what_a_plugin_sees(tmp_path, "inprocess", "json")
    as_process = await what_a_plugin_sees(tmp_path, runtime, protocol)
    for part in inside:
        assert as_process[part] == inside[part], part
    assert inside["refused"] == "plugin inputs are immutable; answer a delta instead"
    assert "authorization" not in json.dumps(inside["routed"])

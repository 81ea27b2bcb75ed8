"""Pages that plugins serve: behind the key, and in public."""

import asyncio
from pathlib import Path

import pytest
import structlog

from tests.support.management import KEY, Managed, managed_proxy

PAGES = """
import json

class P(Plugin):
    async def management_register(self, request, ctx):
        assert request.resource_base_path == "/v0/resource/plugins/" + self.id
        routes = ["{id}/state", "/v0/management/{id}/headers/", "shared", "plugins", "../x", "a:b", "{id}/status/418",
                  "{id}/bug", "{id}/page", "{id}/odd"]
        return ManagementRegisterResponse(
            routes=[ManagementRoute(path=path.replace("{id}", self.id), menu="Route") for path in routes]
            + [ManagementRoute(method="post", path="echo")],
            resources=[
                ManagementRoute(path="status", menu="<Status>", description="how it is"),
                ManagementRoute(path="/v0/resource/plugins/" + self.id + "/own"),
                ManagementRoute(path="../x"),
                ManagementRoute(path="a:b"),
            ],
        )

    async def management_handle(self, request, ctx):
        name = request.path.rpartition("/")[2]
        return await getattr(self, "serve_" + name)(request)

    async def serve_state(self, request):
        return ManagementHandleResponse(body=Body.from_bytes(b'{"t":"<b>", "n":1.50}'), headers={"x-a": ["1", "2"]})

    async def serve_shared(self, request):
        return ManagementHandleResponse(body=Body(text=self.id), status=0)

    async def serve_headers(self, request):
        seen = {"headers": sorted(request.headers), "query": dict(request.query), "method": request.method}
        return ManagementHandleResponse(body=Body.from_value(seen), headers={"X-Jackfield-Version": ["99"]})

    async def serve_echo(self, request):
        return ManagementHandleResponse(body=Body.exact(request.body.to_bytes()), headers={"content-type": ["text/x"]})

    async def serve_page(self, request):
        return ManagementHandleResponse(headers={"content-type": ["text/html"]}, body=Body(text="<p>'&'</p>"))

    async def serve_status(self, request):
        return await self.serve_page(request)

    async def serve_own(self, request):
        assert request.body is UNSET
        headers = {"content-type": ["text/html"], "set-cookie": ["a=b"]}
        headers["content-security-policy"] = ["script-src 'self'"]
        return ManagementHandleResponse(headers=headers, body=Body(text="<script>1</script>"))

    async def serve_418(self, request):
        raise PluginError("short and stout", http_status=418, code="teapot", retry_after_ms=1500)

    async def serve_bug(self, request):
        raise ZeroDivisionError("secret")

    async def serve_odd(self, request):
        return ManagementHandleResponse(status=101)
"""
MUTE = """
class P(Plugin):
    async def management_register(self, request, ctx):
        return ManagementRegisterResponse(routes=[ManagementRoute(path="mute/hang")])

    async def management_handle(self, request, ctx):
        await asyncio.Event().wait()
"""
CODE = "from msgspec import UNSET\n" + PAGES + "\n    id = {id!r}\n"


def code(plugin_id: str) -> str:
    return CODE.replace("{id!r}", repr(plugin_id))


@pytest.fixture
async def managed(directory: Path):  # type: ignore[no-untyped-def]
    plugins = {"low": code("low"), "high": code("high"), "mute": MUTE}
    policy = {"mute": {"timeouts": {"management.handle": "50ms"}}}
    with structlog.testing.capture_logs() as lines:
        async with managed_proxy(directory, plugins, sections={"high": {"priority": 5}}, policy=policy) as managed:
            managed.log = lines
            yield managed


async def test_M111_of_two_plugins_with_one_route_the_higher_priority_has_it_and_the_host_before_all(
    managed: Managed,
) -> None:
    assert (await managed.api.get("/shared")).body == b"high"
    assert "plugins_enabled" in (await managed.api.get("/plugins")).json
    taken = {(line["plugin_id"], line["path"], line["by"]) for line in managed.log if "taken" in line["event"]}
    assert taken == {
        ("low", "/v0/management/shared", "high"),
        ("low", "/v0/management/echo", "high"),
        ("low", "/v0/management/plugins", "the host"),
        ("high", "/v0/management/plugins", "the host"),
    }


async def test_M112_a_json_answer_is_escaped_and_keeps_its_numbers_and_a_page_stays(managed: Managed) -> None:
    answer = await managed.api.get("/high/state")
    assert answer.body == b'{"t":"&lt;b&gt;", "n":1.50}'
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers.getall("x-a") == ["1", "2"]  # type: ignore[attr-defined]
    assert (await managed.api.get("/high/page")).body == b"<p>'&'</p>"
    assert (await managed.api.get("/high/status", below="/v0/resource/plugins")).body == b"<p>'&'</p>"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/high/../x"),
        ("GET", "/high/a:b"),
        ("POST", "/high/status"),
        ("HEAD", "/high/status"),
        ("GET", "/high/status/"),
        ("GET", "/high/Status"),
        ("GET", "/nobody/status"),
        ("GET", "/high"),
    ],
)
async def test_M113_what_is_no_resource_is_404(managed: Managed, method: str, path: str) -> None:
    assert (await managed.api.call(method, path, below="/v0/resource/plugins", headers={})).status == 404


async def test_a_resource_is_public_and_cannot_run_as_a_page_of_the_api(managed: Managed) -> None:
    answer = await managed.api.get("/high/status", below="/v0/resource/plugins", headers={})
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/html")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and policy.endswith("sandbox")
    own = await managed.api.get("/high/own", below="/v0/resource/plugins", headers={})
    policies = own.headers.getall("Content-Security-Policy")  # type: ignore[attr-defined]
    assert policies[0] == "script-src 'self'"
    assert policies[1].startswith("sandbox") and "allow-same-origin" not in policies[1]
    assert "Set-Cookie" not in own.headers
    rebound = await managed.api.get("/high/status", below="/v0/resource/plugins", headers={"Host": "evil.example"})
    assert rebound.status == 403


async def test_a_route_wants_the_key_and_the_plugin_never_sees_it(managed: Managed) -> None:
    assert (await managed.api.get("/high/state", headers={})).status == 401
    headers = {"Authorization": KEY, "X-Management-Key": KEY, "Cookie": "a=b", "X-Mine": "1"}
    answer = await managed.api.get("/high/headers?key=client-secret&a=1&a=2", headers=headers)
    seen = answer.json
    assert "x-mine" in seen["headers"]
    assert not {"authorization", "x-management-key", "cookie"} & set(seen["headers"])
    assert (seen["query"], seen["method"]) == ({"a": ["1", "2"]}, "GET")
    assert answer.headers["X-Jackfield-Version"] != "99"


async def test_a_route_gets_the_body_and_other_methods_of_its_path_are_404(managed: Managed) -> None:
    answer = await managed.api.call("POST", "/echo", data=b"\x00\xff<")
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"\x00\xff<", "text/x")
    assert (await managed.api.get("/echo")).error == (404, "not_found")


async def test_M114_an_error_keeps_its_status_and_the_page_goes_on(managed: Managed) -> None:
    answer = await managed.api.get("/high/status/418")
    assert (answer.error, answer.json["message"]) == ((418, "teapot"), "short and stout")
    assert answer.headers["Retry-After"] == "2"
    for _ in range(2):
        bug = await managed.api.get("/high/bug")
        assert bug.error == (500, "plugin_error") and "secret" not in bug.json["message"]
    assert (await managed.api.get("/mute/hang")).error == (504, "plugin_timeout")
    assert (await managed.api.get("/high/odd")).error[1] == "plugin_protocol_error"
    assert (await managed.api.get("/high/state")).status == 200


async def test_menus_are_in_the_list_and_a_route_with_a_menu_stays_behind_the_key(managed: Managed) -> None:
    menus = {menu["path"]: menu for menu in (await managed.api.row("high"))["menus"]}
    status = menus["/v0/resource/plugins/high/status"]
    assert (status["menu"], status["description"], status["public"]) == ("&lt;Status&gt;", "how it is", True)
    assert menus["/v0/management/high/state"]["public"] is False
    assert list(menus) == sorted(menus)
    assert (await managed.api.get("/high/state", headers={})).status == 401


async def test_pages_come_and_go_with_their_plugin(managed: Managed) -> None:
    assert (await managed.api.call("POST", "/plugins/high/disable")).status == 200
    await managed.settled()
    assert (await managed.api.get("/high/state")).error == (404, "not_found")
    assert (await managed.api.get("/shared")).body == b"low"
    assert (await managed.api.call("POST", "/plugins/high/enable")).status == 200
    await managed.settled()
    assert (await managed.api.get("/shared")).body == b"high"


CRASHES = """
import json, os, sys

def send(frame):
    sys.stdout.write(json.dumps(frame) + "\\n")
    sys.stdout.flush()

for line in sys.stdin:
    frame = json.loads(line)
    if frame["kind"] == "hello":
        hello = {"kind": "hello", "abi": [1], "schema": 1, "plugin": "fragile", "version": "1.0.0"}
        send({**hello, "capabilities": ["management.register", "management.handle"]})
    elif frame["kind"] == "call":
        if frame["method"] == "management.handle" and not os.path.exists("mended"):
            os._exit(3)
        routes, page = {"routes": [{"path": "fragile"}]}, {"body": {"json": {"ok": True}}}
        answer = routes if "register" in frame["method"] else page
        send({"kind": "result", "id": frame["id"], "ok": True, "result": answer})
"""


async def test_M114_a_plugin_that_crashes_is_502_and_its_page_is_back_when_it_is(directory: Path) -> None:
    folder = directory / "plugins" / "fragile"
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(CRASHES)
    (folder / "plugin.toml").write_text("id = 'fragile'\nversion = '1.0.0'\ncommand = ['{python}', '-S', 'main.py']\n")
    async with managed_proxy(directory, sections={"fragile": {"enabled": True}}) as managed:
        assert (await managed.api.get("/fragile")).error == (502, "plugin_crashed")
        (directory / "plugin-data" / "fragile" / "mended").touch()
        answer = await managed.api.get("/fragile")
        async with asyncio.timeout(60):
            while answer.status == 502:
                # Restarting takes a moment; until then the page says whose fault it is instead of vanishing.
                assert answer.error in ((502, "plugin_unavailable"), (502, "plugin_crashed"))
                answer = await managed.api.get("/fragile")
        assert answer.json == {"ok": True}

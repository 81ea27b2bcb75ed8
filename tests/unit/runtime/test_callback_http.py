"""host.http.*: transfers for plugins, secrets for bound hosts only, errors that say what failed."""

import asyncio
from typing import Any

import pytest
from msgspec import structs

from host.config.model import Config, Timeouts
from host.runtime.callback_http import Attached, HttpCallbacks, HttpSettings, http_settings
from host.runtime.callbacks import HostCallbacks
from host.runtime.scope import CallScope
from host.tasks import TaskGroup
from host.upstream.client import UpstreamClient
from host.upstream.model import ClientLimits
from pluginabi.body import Body, StreamItem
from pluginabi.errors import PluginError, host_error
from pluginabi.immutable import EMPTY_HEADERS, Headers
from pluginabi.payloads.callbacks import HttpRequest, HttpResponse
from tests.support.runtime import new_callbacks
from tests.support.upstream_servers import ReceivedRequest, ScriptedServer, ServerConnection, answer, answering


class Attacher:
    """A `SecretAttacher` for one bound host."""

    def __init__(self, bound: str) -> None:
        self.bound = bound

    def attach(
        self,
        handle: str,
        url: str,
        headers: list[tuple[str, str]],
        *,
        plugin_id: str,
        client_headers: Headers = EMPTY_HEADERS,
    ) -> Attached:
        if handle != "h1" or not url.startswith(self.bound):
            raise host_error("permission_denied", "not bound")
        return Attached(url + "?signed=1", [*headers, ("authorization", "Bearer secret")])


class Desk:
    """Callbacks over a real client."""

    def __init__(self, client: UpstreamClient, tasks: TaskGroup) -> None:
        self.http = HttpCallbacks(client, settings=HttpSettings(connect_timeout_s=5.0))
        self.callbacks: HostCallbacks = new_callbacks(tasks, http=self.http)
        self.scope = CallScope(plugin_id="p", method="executor.execute", permissions=frozenset({"http"}))

    async def do(self, url: str, **fields: Any) -> HttpResponse:
        found = await self.callbacks.call(self.scope, "host.http.do", HttpRequest(url=url, **fields))
        assert isinstance(found, HttpResponse)
        return found

    async def stream(self, url: str, **fields: Any) -> tuple[HttpResponse, Any]:
        found, items = await self.callbacks.open_stream(
            self.scope, "host.http.do_stream", HttpRequest(url=url, **fields)
        )
        assert isinstance(found, HttpResponse)
        return found, items


@pytest.fixture
async def desk():
    tasks = TaskGroup("test")
    client = UpstreamClient()
    yield Desk(client, tasks)
    await client.close()
    await tasks.stop()


async def test_a_request_arrives_as_given_and_its_answer_comes_back_whole(desk: Desk):
    received: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        received.append(await connection.request())
        await connection.send(answer(b"body", headers="X-A: 1\r\nX-A: 2\r\n"))

    async with ScriptedServer(script) as server:
        headers = {"x-one": ["1"], "x-two": ["2", "3"]}
        found = await desk.do(f"{server.url}/p?q=1", method="POST", headers=headers, body=Body.from_bytes(b'{"a":1}'))
    (request,) = received
    assert (request.method, request.target, request.body) == ("POST", "/p?q=1", b'{"a":1}')
    assert [value for name, value in request.headers if name == "x-two"] == ["2", "3"]
    assert (found.status, found.headers["x-a"]) == (200, ("1", "2"))
    assert isinstance(found.body, Body) and found.body.to_bytes() == b"body"


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "302 Found", "429 Slow"])
async def test_every_status_is_an_answer_redirects_too(desk: Desk, status: str):
    async with ScriptedServer(answering(answer(b"x", status=status, headers="Location: /elsewhere\r\n"))) as server:
        found = await desk.do(server.url)
        assert server.accepted == 1
    assert found.status == int(status[:3])


async def test_an_empty_body_is_there_and_empty(desk: Desk):
    async with ScriptedServer(answering(answer())) as server:
        found = await desk.do(server.url)
    assert isinstance(found.body, Body) and found.body.to_bytes() == b""


async def test_H121_a_stream_returns_at_the_head_and_delivers_pieces_in_order(desk: Desk, within: Any):
    more = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        await connection.send(b"3\r\ntwo\r\n0\r\n\r\n")
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        found, items = await within(desk.stream(server.url))
        assert found.status == 200
        assert not found.body
        pieces = aiter(items)
        assert await within(anext(pieces)) == StreamItem(raw=Body.exact(b"one"))
        more.set()
        rest = [item.raw.to_bytes() async for item in pieces]
        assert b"".join(rest) == b"two"
        assert desk.scope.on_close == []


async def test_the_end_of_the_parent_closes_the_upstream_connection(desk: Desk, within: Any):
    left = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
        await connection.closed_by_peer()
        left.set()

    async with ScriptedServer(script) as server:
        _, items = await desk.stream(server.url)
        await within(anext(aiter(items)))
        desk.scope.close()
        await within(left.wait())
        with pytest.raises(PluginError) as caught:
            await within(anext(aiter(items)))
    assert caught.value.code == "parent_closed"


async def test_closing_a_stream_closes_the_upstream_connection(desk: Desk, within: Any):
    left = asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")
        await connection.closed_by_peer()
        left.set()

    async with ScriptedServer(script) as server:
        _, items = await desk.stream(server.url)
        await items.aclose()
        await within(left.wait())
    assert desk.scope.on_close == []


async def test_cancelling_a_request_closes_the_upstream_connection(desk: Desk, within: Any):
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        arrived.set()
        await connection.closed_by_peer()
        left.set()

    async with ScriptedServer(script) as server:
        running = asyncio.ensure_future(desk.do(server.url))
        await within(arrived.wait())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(running)
        await within(left.wait())


async def test_a_refused_connection_is_a_502_that_may_be_tried_elsewhere(desk: Desk):
    async with ScriptedServer(answering()) as server:
        url = server.url
    with pytest.raises(PluginError) as caught:
        await desk.do(url)
    body = caught.value.body
    assert (body.http_status, body.code, body.scope, body.origin) == (502, "upstream_unreachable", "connection", "host")


async def test_an_upstream_that_hangs_up_in_the_middle_is_a_502(desk: Desk):
    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx")

    async with ScriptedServer(script) as server:
        with pytest.raises(PluginError) as caught:
            await desk.do(server.url)
        _, items = await desk.stream(server.url)
        with pytest.raises(PluginError) as in_stream:
            _ = [item async for item in items]
    for error in (caught.value, in_stream.value):
        assert (error.http_status, error.code) == (502, "upstream_disconnected")


@pytest.mark.parametrize("url", ["", "/relative", "ftp://a/b", "http://a b/", "http://a/\r\nX: y"])
async def test_a_request_that_cannot_be_sent_is_the_plugins_own_mistake(desk: Desk, url: str):
    with pytest.raises(PluginError) as caught:
        await desk.do(url)
    assert (caught.value.http_status, caught.value.code, caught.value.body.scope) == (
        500,
        "invalid_http_request",
        "request",
    )


async def test_silence_of_the_upstream_is_a_504(within: Any):
    client = UpstreamClient(limits=ClientLimits(sweep_interval_s=0.01))
    tasks = TaskGroup("test")
    desk = Desk(client, tasks)
    desk.http.settings = HttpSettings(first_byte_timeout_s=0.02)

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server:
        with pytest.raises(PluginError) as caught:
            await within(desk.do(server.url))
    assert (caught.value.http_status, caught.value.code) == (504, "upstream_timeout")
    await client.close()
    await tasks.stop()


async def test_the_secret_of_a_credential_is_attached_for_bound_hosts(desk: Desk):
    received: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        received.append(await connection.request())
        await connection.send(answer(b"x"))

    async with ScriptedServer(script) as server:
        desk.http.attacher_of = lambda scope: Attacher(server.url)
        await desk.do(server.url, headers={"x": ["1"]}, credential="h1")
    assert received[0].header("authorization") == "Bearer secret"
    assert received[0].header("x") == "1"
    assert received[0].target == "/?signed=1"


async def test_the_secret_never_follows_a_redirect(desk: Desk):
    async with ScriptedServer(answering(answer(b"stolen"))) as thief:
        there = f"Location: {thief.url}/\r\n"
        async with ScriptedServer(answering(answer(status="307 Temporary Redirect", headers=there))) as server:
            desk.http.attacher_of = lambda scope: Attacher(server.url)
            found = await desk.do(server.url, credential="h1")
            assert found.status == 307
            with pytest.raises(PluginError) as caught:
                await desk.do(found.headers["location"][0], credential="h1")
        assert caught.value.code == "permission_denied"
        assert thief.accepted == 0


@pytest.mark.parametrize("handle", ["h2", ""])
async def test_an_unknown_handle_is_refused_before_anything_is_sent(desk: Desk, handle: str):
    async with ScriptedServer(answering(answer())) as server:
        desk.http.attacher_of = lambda scope: Attacher(server.url)
        with pytest.raises(PluginError) as caught:
            await desk.do(server.url, credential=handle)
        assert server.accepted == 0
    assert caught.value.code == "permission_denied"


async def test_without_credentials_a_handle_is_refused(desk: Desk):
    with pytest.raises(PluginError) as caught:
        await desk.do("http://127.0.0.1:1/", credential="h1")
    assert caught.value.code == "permission_denied"


@pytest.mark.parametrize(
    ("lists", "allowed"),
    [
        ((("127.0.0.1",),), True),
        ((("127.0.0.1",), ("*",)), True),
        ((("127.0.0.1",), ("example.com",)), False),
        ((("example.com",),), False),
        ((("127.0.0.1:1",),), False),
    ],
)
async def test_only_hosts_on_every_list_may_be_called(desk: Desk, lists: Any, allowed: bool):
    desk.http.hosts = {"p": lists, "other": (("nothing.example",),)}
    async with ScriptedServer(answering(answer())) as server:
        if allowed:
            assert (await desk.do(server.url)).status == 200
        else:
            with pytest.raises(PluginError) as caught:
                await desk.do(server.url)
            assert caught.value.code == "permission_denied"
            assert "127.0.0.1" in caught.value.body.message
        assert server.accepted == (1 if allowed else 0)


@pytest.mark.parametrize(
    ("named", "allowed"), [((), False), (("example.com",), False), (("127.0.0.1",), True), (("127.0.0.1:1",), False)]
)
async def test_this_machine_is_closed_to_a_plugin_unless_the_operator_names_it(desk: Desk, named: Any, allowed: bool):
    desk.http.private_hosts = {"p": named}
    async with ScriptedServer(answering(answer())) as server:
        if allowed:
            assert (await desk.do(server.url)).status == 200
        else:
            for url in (server.url, f"http://localhost:{server.port}", f"http://[::ffff:127.0.0.1]:{server.port}"):
                with pytest.raises(PluginError, match=r"http-hosts has to name") as caught:
                    await desk.do(url)
                assert caught.value.code == "permission_denied"
        assert server.accepted == (1 if allowed else 0)
    refused = {} if allowed else {"host.http to an address that is not public": 3}
    assert desk.callbacks.refusals.of("p") == refused


async def test_a_connection_that_others_may_use_is_not_shared_with_a_plugin_that_may_not(desk: Desk):
    async with ScriptedServer(answering(answer(), answer())) as server:
        desk.scope = CallScope(plugin_id="bundled", method="executor.execute", permissions=frozenset({"http"}))
        assert (await desk.do(server.url)).status == 200
        desk.http.private_hosts = {"p": ()}
        desk.scope = CallScope(plugin_id="p", method="executor.execute", permissions=frozenset({"http"}))
        with pytest.raises(PluginError, match=r"not public|no public"):
            await desk.do(server.url)
        assert server.accepted == 1


async def test_a_credential_leads_to_the_host_that_the_operator_gave_it_wherever_that_is(desk: Desk):
    desk.http.private_hosts = {"p": ()}
    async with ScriptedServer(answering(answer())) as server:
        desk.http.attacher_of = lambda scope: Attacher(server.url)
        assert (await desk.do(server.url, credential="h1")).status == 200


@pytest.mark.parametrize(
    ("granted", "named", "allowed"),
    [({"http"}, ("127.0.0.1",), True), (set(), ("127.0.0.1",), False), ({"http"}, ("api.example.com",), False)],
)
async def test_a_plugin_leads_the_credentials_it_makes_only_where_it_may_call_itself(
    desk: Desk, granted: set[str], named: Any, allowed: bool
):
    class Led(Attacher):
        def attach(self, *arguments: Any, **more: Any) -> Attached:
            return structs.replace(super().attach(*arguments, **more), chosen_by="maker")

    desk.http.hosts, desk.http.private_hosts = {"maker": (named,)}, {"maker": named}
    desk.callbacks.grants = {"p": frozenset({"http"}), "maker": frozenset(granted)}
    async with ScriptedServer(answering(answer())) as server:
        desk.http.attacher_of = lambda scope: Led(server.url)
        if allowed:
            assert (await desk.do(server.url, credential="h1")).status == 200
        else:
            with pytest.raises(PluginError) as caught:
                await desk.do(server.url, credential="h1")
            assert (caught.value.code, server.accepted) == ("permission_denied", 0)
            assert desk.callbacks.refusals.of("maker") == {"host.http to a host that is not allowed": 1}


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost/", "http://x.localhost/", "http://[::1]/"])
async def test_a_proxy_is_not_asked_for_this_machine_either(desk: Desk, url: str):
    desk.http.private_hosts = {"p": ()}
    async with ScriptedServer(answering(answer())) as proxy:
        desk.http.settings = HttpSettings(proxy_url=proxy.url)
        with pytest.raises(PluginError, match="not a public address"):
            await desk.do(url)
        assert proxy.accepted == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://good.example@evil.example/",
        "http://good.example.evil.example/",
        "http://evil.example\\@good.example/",
        "http://good.example\\.evil.example/",
        "http://evil.example/#@good.example/",
        "nonsense",
    ],
)
async def test_a_host_cannot_be_disguised(desk: Desk, url: str):
    desk.http.hosts = {"p": (("good.example",),)}
    with pytest.raises(PluginError) as caught:
        await desk.do(url)
    assert caught.value.code == "permission_denied"


def test_the_settings_come_from_the_configuration():
    config = Config(timeouts=Timeouts(connect="1s", first_byte="2s", idle="3s"), proxy_url="http://127.0.0.1:1")
    assert http_settings(config) == HttpSettings(
        connect_timeout_s=1.0, first_byte_timeout_s=2.0, idle_timeout_s=3.0, proxy_url="http://127.0.0.1:1"
    )

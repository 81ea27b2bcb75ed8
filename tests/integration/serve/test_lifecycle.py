"""`jackfield serve` from start to end: refusals, readiness, signals, and nothing left behind."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme

from host.app import Proxy
from host.config.load import load_config
from host.door import Door
from host.pipeline.access import AccessDenied
from host.worker import Worker
from tests.integration.serve.conftest import CHAT, Site, enabled
from tests.support.pids import descendants, end_of
from tests.support.plugin_folders import write_greeter
from tests.support.ports import reserved_port
from tests.support.proxy import running_proxy, serve_process
from tests.support.upstream_servers import ScriptedServer, ServerConnection

FIRST = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
REST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
IGNORES_EVERYTHING = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)"
STAYS = "while True: time.sleep(3600)"


class Pausing:
    """An upstream script: the first event, then the rest once `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, connection: ServerConnection) -> None:
        await connection.request()
        await connection.send(STREAM_HEAD + FIRST)
        await self.go_on.wait()
        await connection.send(REST)


def acme(url: str) -> list[dict[str, object]]:
    return [{"name": "acme", "base-url": f"{url}/v1", "models": [{"name": "m1"}]}]


async def test_a_public_address_without_keys_is_refused_with_a_sentence(site: Site) -> None:
    site.configure(host="0.0.0.0")
    async with serve_process(site.config_file, wait_ready=False) as served:
        assert await served.exit_code() == 69
    assert "`host: 0.0.0.0` is a public address and anybody could use it" in served.lines[-1]
    assert "api-keys" in served.lines[-1]


async def test_a_public_address_with_an_enabled_plugin_that_authenticates_nobody_is_refused_too(site: Site) -> None:
    write_greeter(site.plugins)
    site.configure(host="0.0.0.0", plugins=enabled("greeter"))
    async with serve_process(site.config_file, wait_ready=False) as served:
        assert await served.exit_code() == 69
    assert any("is a public address and anybody could use it" in line for line in served.lines)


async def test_a_port_in_use_is_named_and_the_exit_code_says_so(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.configure(port=port)
        async with serve_process(site.config_file, wait_ready=False) as served:
            assert await served.exit_code() == 69
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in served.lines[-1]


async def test_an_address_that_is_not_this_machines_is_named(site: Site) -> None:
    site.configure(host="192.0.2.1", api_keys=["k-1"])
    async with serve_process(site.config_file, wait_ready=False) as served:
        assert await served.exit_code() == 69
    assert "cannot listen on 192.0.2.1:0: Cannot assign requested address" in served.lines[-1]


@pytest.mark.parametrize(
    ("tls", "words"),
    [
        ({"cert": "cert.pem"}, "`tls.key` is missing"),
        ({"cert": "absent.pem", "key": "key.pem"}, "`tls.cert`: "),
        ({"cert": "key.pem", "key": "key.pem"}, "cannot be used"),
    ],
    ids=["missing", "absent", "mixed up"],
)
async def test_a_certificate_that_cannot_be_used_is_named(site: Site, tls: dict[str, str], words: str) -> None:
    for name in ("cert.pem", "key.pem"):
        (site.directory / name).write_text("no certificate\n")
    site.configure(tls={"enable": True, **tls})
    async with serve_process(site.config_file, wait_ready=False) as served:
        assert await served.exit_code() == 69
    assert words in served.lines[-1]


async def test_https_is_served_with_the_configured_certificate(site: Site, client: aiohttp.ClientSession) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(site.directory / "both.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    site.configure(tls={"enable": True, "cert": "both.pem", "key": "both.pem"})
    async with serve_process(site.config_file) as served:
        assert served.url.startswith("https://127.0.0.1:")
        async with client.get(f"{served.url}/readyz", ssl=trusting) as response:
            assert response.status == 200


async def test_a_mistake_in_the_file_is_shown_with_file_and_line_and_the_nearest_key(site: Site) -> None:
    site.config_file.write_text("port: 0\n\nprot: 1\n")
    async with serve_process(site.config_file, wait_ready=False) as served:
        assert await served.exit_code() == 78
    assert f"{site.config_file}:3: unknown key `prot`; did you mean `port`?" in served.lines[-1]


async def test_a_missing_file_says_how_to_make_one(site: Site) -> None:
    async with serve_process(site.directory / "absent.yaml", wait_ready=False) as served:
        assert await served.exit_code() == 78
    assert "absent.yaml:1: no such file" in served.lines[-1]
    assert "jackfield init" in served.lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_proxy_with_0(site: Site, number: signal.Signals) -> None:
    async with serve_process(site.config_file) as served:
        served.send(number)
        assert await served.exit_code() == 0


async def test_ready_is_red_until_the_plugins_are_up_and_a_request_that_came_early_is_served_then(
    site: Site, client: aiohttp.ClientSession
) -> None:
    gate = site.directory / "gate"
    os.mkfifo(gate)
    write_greeter(site.plugins, prelude=f"open({str(gate)!r}).read()")
    policy = {"greeter": {"read-paths": ["gate"]}}
    async with contextlib.AsyncExitStack() as stack:
        port = stack.enter_context(reserved_port())
        site.configure(port=port, plugins={**enabled("greeter"), "policy": policy})
        url = f"http://127.0.0.1:{port}"
        served = await stack.enter_async_context(serve_process(site.config_file, wait_ready=False))
        await served.event("plugin.state", new="handshaking")
        async with client.get(f"{url}/readyz") as response:
            assert response.status == 503
            assert (await response.json())["status"] == "starting"
        async with client.get(f"{url}/healthz") as response:
            assert response.status == 200
        early = asyncio.create_task(client.post(f"{url}/v1/chat/completions", json=CHAT).__aenter__())
        async with asyncio.timeout(60):
            # It waits there beside the one that asks for the numbers.
            while "jackfield_requests_in_flight 2.0" not in await (await client.get(f"{url}/metrics")).text():
                pass
        gate.write_bytes(b"")
        response = await early
        assert await response.json() == {"says": "hello"}
        await served.event("proxy.ready")
        async with client.get(f"{url}/readyz") as response:
            assert (response.status, (await response.json())["status"]) == (200, "ready")


async def test_a_guard_that_is_down_keeps_the_proxy_red_and_closed_until_it_is_mended(
    site: Site, client: aiohttp.ClientSession
) -> None:
    fails = '[on_error]\n"request.intercept_before" = "fail"\n'
    write_greeter(site.plugins, prelude="raise SystemExit('I am broken')", toml=fails)
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file) as served:
        async with client.get(f"{served.url}/readyz") as response:
            assert (response.status, (await response.json())["waiting_for"]) == (503, ["greeter"])
        async with client.post(f"{served.url}/v1/chat/completions", json=CHAT) as response:
            assert response.status == 502
            assert (await response.json())["error"]["code"] == "plugin_unavailable"
        write_greeter(site.plugins)
        served.send(signal.SIGHUP)
        await served.event("plugin.reload", plugin_id="greeter")
        async with client.get(f"{served.url}/readyz") as response:
            assert response.status == 200
        async with client.post(f"{served.url}/v1/chat/completions", json=CHAT) as response:
            assert await response.json() == {"says": "hello"}


async def test_a_signal_while_a_plugin_is_still_starting_ends_the_proxy_and_the_plugin(site: Site) -> None:
    gate = site.directory / "gate"
    os.mkfifo(gate)
    write_greeter(site.plugins, prelude=f"open({str(gate)!r}).read()")
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file, wait_ready=False) as served:
        await served.event("plugin.state", new="handshaking")
        left = [end_of(pid) for pid in descendants(served.pid)]
        served.send(signal.SIGTERM)
        assert await served.exit_code() == 0
    assert left
    await asyncio.gather(*left)


async def test_sigterm_stops_accepting_lets_a_running_stream_end_and_exits_with_0(
    site: Site, client: aiohttp.ClientSession
) -> None:
    script = Pausing()
    async with ScriptedServer(script) as server:
        site.configure(openai_compatibility=acme(server.url))
        async with serve_process(site.config_file) as served:
            host, port = served.url.removeprefix("http://").split(":")
            idle, idle_writer = await asyncio.open_connection(host, int(port))
            asked = {**CHAT, "stream": True}
            async with client.post(f"{served.url}/v1/chat/completions", json=asked) as response:
                first = await response.content.readuntil(b"\n\n")
                served.send(signal.SIGTERM)
                # The idle connection is closed once nobody accepts any more.
                async with asyncio.timeout(60):
                    assert await idle.read() == b""
                idle_writer.close()
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(host, int(port))
                script.go_on.set()
                assert first + await response.read() == FIRST + REST
            assert await served.exit_code() == 0


async def test_a_request_that_comes_while_the_proxy_begins_to_stop_is_answered(client: aiohttp.ClientSession) -> None:
    stopping, go_on = asyncio.Event(), asyncio.Event()

    async def first_of_what_stops() -> None:
        stopping.set()
        await go_on.wait()

    async with running_proxy(demo=True) as running, asyncio.timeout(60):
        running.proxy._stack.push_async_callback(first_of_what_stops)
        stop = asyncio.create_task(running.proxy.stop())
        await stopping.wait()
        async with client.post(f"{running.url}/v1/chat/completions", json={**CHAT, "model": "echo"}) as response:
            assert response.status == 200
        go_on.set()
        await stop


@pytest.mark.parametrize("replaces", [False, True])
async def test_a_worker_in_place_of_another_takes_no_connections_before_it_can_serve_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    listen, can_serve = Proxy._listen, list[bool]()

    async def noted(proxy: Proxy) -> None:
        can_serve.append(proxy.applier.status.applied_generation > 0)
        await listen(proxy)

    monkeypatch.setattr(Proxy, "_listen", noted)
    file = tmp_path / "config.yaml"
    file.write_text("port: 0\n")
    proxy = Proxy(load_config(file), config_path=file, watch=False, worker=Worker(2, 2, replaces=replaces))
    try:
        async with asyncio.timeout(60):
            await proxy.start()
    finally:
        await proxy.stop()
    assert can_serve == [replaces]


async def test_who_waits_for_a_proxy_that_stops_before_it_is_up_is_told_so() -> None:
    door = Door(Any)  # type: ignore[arg-type]  # nobody is let in
    asked = door.authenticate(
        request_id="r", method="GET", path="/", headers={}, query={}, client_address="", read_body=Any, times_s=None
    )
    waiting = asyncio.create_task(asked)
    await asyncio.sleep(0)
    door.close()
    with pytest.raises(AccessDenied) as refused:
        await waiting
    assert (refused.value.body.http_status, refused.value.body.code) == (503, "shutdown")


async def test_a_stream_that_outlasts_the_shutdown_timeout_ends_with_an_error_event(
    site: Site, client: aiohttp.ClientSession
) -> None:
    async with ScriptedServer(Pausing()) as server:
        site.configure(openai_compatibility=acme(server.url), shutdown_timeout="100ms")
        async with serve_process(site.config_file) as served:
            asked = {**CHAT, "stream": True}
            async with client.post(f"{served.url}/v1/chat/completions", json=asked) as response:
                await response.content.readuntil(b"\n\n")
                served.send(signal.SIGTERM)
                rest = await response.read()
            assert await served.exit_code() == 0
    assert rest.startswith(b'data: {"error":')
    assert b"stopping" in rest


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_however_the_proxy_ends_no_process_is_left_behind(site: Site, number: signal.Signals) -> None:
    names = ["good"]
    write_greeter(site.plugins, "good")
    if number == signal.SIGKILL:
        write_greeter(site.plugins, "stubborn", prelude=IGNORES_EVERYTHING, epilogue=STAYS)
        names.append("stubborn")
    site.configure(plugins=enabled(*names))
    async with serve_process(site.config_file) as served:
        left = [end_of(pid) for pid in descendants(served.pid)]
        served.send(number)
        assert await served.exit_code() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert len(left) > len(names)
    await asyncio.gather(*left)


async def test_a_caller_is_named_in_the_log_and_its_key_never_shown(site: Site, client: aiohttp.ClientSession) -> None:
    site.configure(api_keys=[{"key": "jf-a-long-secret-key", "name": "alice"}, "jf-an-unnamed-key"])
    async with serve_process(site.config_file) as served:
        url = f"{served.url}/v1/models"
        async with client.get(url, headers={"Authorization": "Bearer jf-a-long-secret-key"}) as response:
            assert response.status == 200
        async with client.get(f"{url}?key=jf-an-unnamed-key") as response:
            assert response.status == 200
        async with client.get(url, headers={"x-api-key": "jf-a-wrong-key"}) as response:
            assert response.status == 401
        await served.event("http.request", caller="alice", status=200)
        await served.event("http.request", status=401)
    text = "\n".join(served.lines + served.stdout)
    for secret in ("jf-a-long-secret-key", "jf-an-unnamed-key", "jf-a-wrong-key"):
        assert secret not in text


async def test_without_keys_only_this_machine_and_no_web_page_of_another_host_is_served(
    site: Site, client: aiohttp.ClientSession
) -> None:
    write_greeter(site.plugins)
    site.configure(plugins=enabled("greeter"))
    async with serve_process(site.config_file) as served:
        url = f"{served.url}/v1/chat/completions"
        port = served.url.rpartition(":")[2]
        for headers, expected in (
            ({}, 200),
            ({"Host": f"localhost:{port}"}, 200),
            ({"Host": f"[::1]:{port}"}, 200),
            ({"Origin": "http://localhost:3000"}, 200),
            ({"Host": f"evil.example:{port}"}, 403),
            ({"Host": f"localhost.evil.example:{port}"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Authorization": "Bearer any", "Host": "evil.example"}, 403),
        ):
            async with client.post(url, json=CHAT, headers=headers) as response:
                assert response.status == expected, headers

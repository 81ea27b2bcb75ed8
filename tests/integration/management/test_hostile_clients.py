"""Clients that are slow, large, or come at the wrong moment harm nobody but themselves."""

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from host.management import calls, listener
from host.web import app
from tests.support.management import KEY, Managed, managed_proxy
from tests.support.runtime import plugin_folder

HEAD = f"POST /v0/management/auth-files?name=a.json HTTP/1.1\r\nHost: localhost\r\nAuthorization: {KEY}\r\n"
SLOW = """
class P(Plugin):
    async def model_route(self, request, ctx):
        return None
"""


async def connect(managed: Managed) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(managed.api.base)
    return await asyncio.open_connection(address.hostname, address.port)


@pytest.mark.parametrize("listen", ["", "127.0.0.1:0"])
async def test_who_never_ends_its_head_is_closed_and_the_others_are_served(
    directory: Path, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    monkeypatch.setattr(listener if listen else app, "KEEP_ALIVE_S", 0.3)
    async with managed_proxy(directory, remote={"listen": listen}) as managed:
        slow = [await connect(managed) for _ in range(100)]
        for number, (_, writer) in enumerate(slow):
            writer.write(HEAD.encode()[: number + 1] if number else b"")
        assert (await managed.api.get("/debug")).status == 200
        async with asyncio.timeout(60):
            assert await asyncio.gather(*(reader.read() for reader, _ in slow)) == [b""] * 100
        for _, writer in slow:
            writer.close()


async def test_a_body_that_does_not_come_is_given_up_and_stops_no_other_write(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BODY_S", 0.3)
    async with managed_proxy(directory) as managed:
        reader, writer = await connect(managed)
        writer.write(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode())
        assert (await managed.api.call("PUT", "/request-retry", json={"value": 1})).status == 200
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
        writer.close()


@pytest.mark.parametrize("length", ["Content-Length: 99999999999\r\n", "Transfer-Encoding: chunked\r\n"])
async def test_an_upload_above_the_limit_is_413_as_soon_as_that_is_known(directory: Path, length: str) -> None:
    async with managed_proxy(directory) as managed:
        reader, writer = await connect(managed)
        writer.write(f"{HEAD}{length}\r\n".encode())
        if "chunked" in length:
            writer.write(b"".join(b"100000\r\n" + b"x" * 0x100000 + b"\r\n" for _ in range(9)))
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        assert not [*(directory / "auths").glob("*")]


async def test_a_client_that_leaves_in_the_middle_of_an_upload_leaves_no_file(directory: Path) -> None:
    async with managed_proxy(directory) as managed:
        _, writer = await connect(managed)
        writer.write(f"{HEAD}Content-Length: 100\r\n\r\n".encode() + b'{"type": "claude"')
        await writer.drain()
        writer.transport.abort()
        assert (await managed.api.get("/auth-files")).json == {"files": []}
        assert not [*(directory / "auths").glob("*")]


async def test_a_document_that_would_fill_the_memory_or_never_end_is_refused_and_stops_no_other_write(
    directory: Path,
) -> None:
    bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9 if n else ['x'] * 9)}]\n" for n in range(12))
    nested = "[" * 900 + "]" * 900
    async with managed_proxy(directory, {"router": SLOW}) as managed:
        api, text = managed.api, managed.file.read_text()
        for method, path, body, error in (
            ("PUT", "/config.yaml", text + bomb, "invalid_yaml"),
            ("PUT", "/config.yaml", f"{text}x: {nested}\n", "invalid_yaml"),
            ("PUT", "/config.yaml", f"{text}x: &x [*x]\n", "invalid_yaml"),
            ("PATCH", "/plugins/router/config", f'{{"v": {nested}}}', "invalid_body"),
            ("PUT", "/request-retry", f'{{"value": {nested}}}', "invalid body"),
            ("PUT", "/request-retry", f'{{"value": {10**40}}}', "invalid body"),
        ):
            answer = await api.call(method, path, data=body.encode())
            assert answer.error == (400, error), (path, answer.body)
        assert managed.file.read_text() == text
        assert (await api.call("PUT", "/request-retry", json={"value": 1})).status == 200


async def test_a_change_of_the_configuration_while_plugins_are_upgraded_is_applied_once_and_lost_by_nobody(
    directory: Path,
) -> None:
    async with managed_proxy(directory, {"router": SLOW, "other": SLOW}) as managed:
        for version in range(3):
            plugin_folder(directory / "plugins", "router", SLOW + f"# {version}\n")
            answers = await asyncio.gather(
                managed.api.call("POST", "/plugins/router/reload"),
                managed.api.call("PATCH", "/plugins/router/config", json={"priority": version + 1}),
                managed.api.call("PATCH", "/plugins/other/enabled", json={"enabled": version == 1}),
                managed.api.call("PUT", "/request-retry", json={"value": version}),
                managed.api.call("POST", "/plugins/router/reload"),
            )
            assert [answer.status for answer in answers] == [200] * 5, [answer.body for answer in answers]
            await managed.settled()
        listed = (await managed.api.get("/plugins")).json
        async with asyncio.timeout(60):
            # The file is watched, too: what was saved may just be read once more.
            while listed["config"]["state"] == "applying":
                listed = (await managed.api.get("/plugins")).json
        rows = {row["id"]: row for row in listed["plugins"]}
        assert (rows["router"]["state"], rows["router"]["priority"]) == ("ready", 3)
        assert rows["other"]["effective_enabled"] is False
        assert managed.running.proxy.config.request_retry == 2
        status = listed["config"]
        assert (status["state"], status["problems"]) == ("applied", [])
        assert status["generation"] == status["applied_generation"] >= 9

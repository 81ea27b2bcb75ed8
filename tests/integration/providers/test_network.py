"""Between proxy and upstream: outbound proxies, TLS, connections that are kept alive or lost, compressed answers."""

import gzip
import json
import zlib
from pathlib import Path

import aiohttp
import brotli  # type: ignore[import-untyped]
import pytest
import trustme
import zstandard

from tests.support.fake_upstream import FakeUpstream
from tests.support.families import CLAUDE, OPENAI, Family
from tests.support.proxies import ConnectProxy, Socks5Proxy
from tests.support.proxy import running_proxy
from tests.support.upstream_client import LocalCa
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answer, repeating

ENCODERS = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress, "zstd": zstandard.compress}


@pytest.fixture(scope="session")
def local_ca(tmp_path_factory: pytest.TempPathFactory) -> LocalCa:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return LocalCa(path, ca)


async def ask(client: aiohttp.ClientSession, url: str, family: Family, *, stream: bool = False) -> tuple[int, bytes]:
    path, body = family.request(stream=stream)
    async with client.post(url + path, data=body) as response:
        return response.status, await response.read()


async def test_a_proxy_for_everything_is_used_for_plain_http_through_a_tunnel(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    async with ConnectProxy(user="u", password="p%") as outbound:
        top = {"proxy-url": f"http://u:p%25@127.0.0.1:{outbound.port}"}
        async with running_proxy(family.config(upstream.url, top=top)) as proxy:
            for stream in (False, True):
                assert (await ask(client, proxy.url, family, stream=stream))[0] == 200
        assert set(outbound.asked) == {upstream.url.removeprefix("http://")}


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
async def test_a_credentials_own_proxy_wins_over_the_general_one(
    client: aiohttp.ClientSession, upstream: FakeUpstream, scheme: str
) -> None:
    async with Socks5Proxy(user="u", password="p") as own, ConnectProxy() as general:
        section = CLAUDE.entries(upstream.url, ["k"], proxy_url=f"{scheme}://u:p@127.0.0.1:{own.port}")
        config = {"claude-api-key": section, "proxy-url": f"http://127.0.0.1:{general.port}"}
        async with running_proxy(json.dumps(config)) as proxy:
            assert (await ask(client, proxy.url, CLAUDE))[0] == 200
        assert len(own.asked) == 1
        assert general.asked == []


async def test_each_key_of_a_compatible_provider_may_have_its_own_proxy(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    async with ConnectProxy() as outbound:
        section = OPENAI.entries(upstream.url, ["direct", "proxied"])
        section[0]["api-key-entries"][1]["proxy-url"] = f"http://127.0.0.1:{outbound.port}"
        async with running_proxy(json.dumps({"openai-compatibility": section})) as proxy:
            for _ in range(2):
                assert (await ask(client, proxy.url, OPENAI))[0] == 200
        assert len(outbound.asked) == 1
    assert {sent.headers["Authorization"] for sent in upstream.requests} == {"Bearer direct", "Bearer proxied"}


async def test_a_proxy_that_refuses_is_a_502_that_shows_no_password(
    client: aiohttp.ClientSession, upstream: FakeUpstream, family: Family
) -> None:
    async with ConnectProxy(user="u", password="other") as outbound:
        top = {"proxy-url": f"http://u:very-secret@127.0.0.1:{outbound.port}"}
        async with running_proxy(family.config(upstream.url, top=top)) as proxy:
            status, body = await ask(client, proxy.url, family)
    assert status == 502
    assert b"very-secret" not in body
    assert upstream.requests == []


async def test_an_upstream_with_a_certificate_of_ones_own_authority_is_trusted_when_configured(
    client: aiohttp.ClientSession, local_ca: LocalCa, family: Family
) -> None:
    context = local_ca.server_context("127.0.0.1")
    async with ScriptedServer(repeating(answer(b'{"a":1}')), ssl_context=context) as server:
        top = {"upstream-ca-file": str(local_ca.ca_file)}
        async with running_proxy(family.config(server.url, top=top)) as proxy:
            for _ in range(2):
                assert await ask(client, proxy.url, family) == (200, b'{"a":1}')
        assert server.accepted == 1


async def test_a_relative_ca_file_lies_beside_the_configuration(
    client: aiohttp.ClientSession, local_ca: LocalCa, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(local_ca.ca_file.read_bytes())
    context = local_ca.server_context("127.0.0.1")
    async with ScriptedServer(repeating(answer(b"{}")), ssl_context=context) as server:
        config = CLAUDE.config(server.url, top={"upstream-ca-file": "ca.pem"})
        async with running_proxy(config, directory=tmp_path) as proxy:
            assert (await ask(client, proxy.url, CLAUDE))[0] == 200


@pytest.mark.parametrize("problem", ["unknown authority", "another name"])
async def test_a_bad_certificate_is_refused_with_502_and_nothing_is_sent(
    client: aiohttp.ClientSession, local_ca: LocalCa, family: Family, problem: str
) -> None:
    received: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        received.append((await connection.request()).head)

    unknown = problem == "unknown authority"
    context = local_ca.server_context("127.0.0.1" if unknown else "other.example")
    async with ScriptedServer(script, ssl_context=context) as server:
        top = {} if unknown else {"upstream-ca-file": str(local_ca.ca_file)}
        async with running_proxy(family.config(server.url, top=top)) as proxy:
            status, body = await ask(client, proxy.url, family)
    assert status == 502
    assert b"certificate" in body
    assert received == []


async def test_a_connection_is_reused_and_a_lost_one_is_replaced_without_the_client_noticing(
    client: aiohttp.ClientSession, family: Family
) -> None:
    async def script(connection: ServerConnection) -> None:
        for _ in range(2):
            await connection.request()
            await connection.send(answer(b"{}"))

    async with ScriptedServer(script) as server, running_proxy(family.config(server.url)) as proxy:
        for _ in range(6):
            assert await ask(client, proxy.url, family) == (200, b"{}")
        assert server.accepted == 3


async def test_a_connection_that_dies_under_a_request_is_a_502_when_the_upstream_may_have_acted(
    client: aiohttp.ClientSession, family: Family
) -> None:
    requests: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        requests.append((await connection.request()).body)
        connection.hang_up()

    async with ScriptedServer(script) as server, running_proxy(family.config(server.url)) as proxy:
        status, _ = await ask(client, proxy.url, family)
    assert status == 502
    assert len(requests) == 1


@pytest.mark.parametrize("coding", ENCODERS)
async def test_a_compressed_answer_reaches_the_client_as_its_content(
    client: aiohttp.ClientSession, family: Family, coding: str
) -> None:
    content = b'{"text":"' + b"a" * 5000 + b'"}'
    compressed = answer(ENCODERS[coding](content), headers=f"Content-Encoding: {coding}\r\n")
    async with ScriptedServer(repeating(compressed)) as server, running_proxy(family.config(server.url)) as proxy:
        path, body = family.request()
        async with client.post(proxy.url + path, data=body) as response:
            assert await response.read() == content
            assert "Content-Encoding" not in response.headers
            assert response.headers["Content-Length"] == str(len(content))


@pytest.mark.parametrize("coding", ENCODERS)
async def test_a_compressed_error_reaches_the_client_as_its_content(
    client: aiohttp.ClientSession, family: Family, coding: str
) -> None:
    content = b'{"error":{"message":"compressed words","code":503}}'
    compressed = answer(ENCODERS[coding](content), status="503 Busy", headers=f"Content-Encoding: {coding}\r\n")
    top = {"disable-cooling": True}
    async with (
        ScriptedServer(repeating(compressed)) as server,
        running_proxy(family.config(server.url, top=top)) as proxy,
    ):
        for stream in (False, True):
            assert await ask(client, proxy.url, family, stream=stream) == (503, content)


async def test_streams_are_asked_for_uncompressed_and_decoded_if_they_come_compressed_anyway(
    client: aiohttp.ClientSession, upstream: FakeUpstream
) -> None:
    stream = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    accepted: list[str | None] = []

    async def script(connection: ServerConnection) -> None:
        accepted.append((await connection.request()).header("accept-encoding"))
        await connection.send(answer(gzip.compress(stream), headers="Content-Encoding: gzip\r\n"))
        await connection.closed_by_peer()

    async with ScriptedServer(script) as server, running_proxy(OPENAI.config(server.url)) as proxy:
        assert await ask(client, proxy.url, OPENAI, stream=True) == (200, stream)
    assert accepted in ([None], ["identity"])


async def test_an_answer_that_cannot_be_decompressed_is_a_502(client: aiohttp.ClientSession, family: Family) -> None:
    broken = answer(b"not gzip at all", headers="Content-Encoding: gzip\r\n")
    async with ScriptedServer(repeating(broken)) as server, running_proxy(family.config(server.url)) as proxy:
        assert (await ask(client, proxy.url, family))[0] == 502

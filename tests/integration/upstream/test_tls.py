"""TLS to the upstream: certificates and names are verified, and a refusal is a TlsError with nothing sent."""

import asyncio
import ssl

import pytest

from host.upstream import TlsError, UpstreamError, UpstreamRequest
from tests.support.upstream_client import LocalCa, MakeClient
from tests.support.upstream_servers import ReceivedRequest, ScriptedServer, ServerConnection, answer, repeating, within


def post(url: str) -> UpstreamRequest:
    return UpstreamRequest(method="POST", url=url, body=b"{}")


async def test_an_extra_ca_makes_its_servers_trusted_and_connections_are_reused(
    make_client: MakeClient, local_ca: LocalCa
) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    context = local_ca.server_context("localhost")
    async with ScriptedServer(repeating(answer(b"ok")), ssl_context=context) as server:
        for _ in range(3):
            response = await within(client.send(post(f"https://localhost:{server.port}/")))
            assert await within(response.read()) == b"ok"
        assert server.accepted == 1


async def test_an_address_as_host_is_verified_against_the_certificate(
    make_client: MakeClient, local_ca: LocalCa
) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    async with ScriptedServer(repeating(answer(b"ok")), ssl_context=local_ca.server_context("127.0.0.1")) as server:
        response = await within(client.send(post(server.url)))
        assert await within(response.read()) == b"ok"


async def test_a_context_of_the_caller_is_used_as_it_is(make_client: MakeClient, local_ca: LocalCa) -> None:
    context = ssl.create_default_context(cafile=str(local_ca.ca_file))
    client = make_client(ssl_context=context)
    async with ScriptedServer(repeating(answer(b"ok")), ssl_context=local_ca.server_context("localhost")) as server:
        response = await within(client.send(post(f"https://localhost:{server.port}/")))
        assert await within(response.read()) == b"ok"


async def test_the_server_name_and_http_1_1_are_announced_in_the_handshake(
    make_client: MakeClient, local_ca: LocalCa
) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    context = local_ca.server_context("localhost")
    context.set_alpn_protocols(["h2", "http/1.1"])
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    protocols: list[str | None] = []

    async def script(connection: ServerConnection) -> None:
        protocols.append(connection.writer.get_extra_info("ssl_object").selected_alpn_protocol())
        await connection.request()
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()

    async with ScriptedServer(script, ssl_context=context) as server:
        await within(client.send(post(f"https://localhost:{server.port}/")))
    assert (names, protocols) == (["localhost"], ["http/1.1"])


@pytest.mark.parametrize(
    ("trusted", "certificate_name"),
    [(False, "localhost"), (True, "elsewhere.example")],
    ids=["unknown-ca", "wrong-host-name"],
)
async def test_a_certificate_that_does_not_verify_is_refused_before_the_request_is_sent(
    make_client: MakeClient, local_ca: LocalCa, trusted: bool, certificate_name: str
) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file) if trusted else None)
    requests: list[ReceivedRequest] = []

    async def script(connection: ServerConnection) -> None:
        requests.append(await connection.request())

    context = local_ca.server_context(certificate_name)
    async with ScriptedServer(script, ssl_context=context) as server:
        with pytest.raises(TlsError) as caught:
            await within(client.send(post(f"https://localhost:{server.port}/")))
    assert (caught.value.phase, caught.value.bytes_sent) == ("tls", False)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert requests == []


async def test_a_server_that_does_not_speak_tls_is_a_tls_error(make_client: MakeClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.reader.read(1)
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    client = make_client()
    async with ScriptedServer(script) as server:
        with pytest.raises(TlsError):
            await within(client.send(post(server.url.replace("http://", "https://"))))


async def test_a_server_that_hangs_up_in_the_handshake_is_a_tls_error(make_client: MakeClient) -> None:
    async def script(connection: ServerConnection) -> None:
        await connection.reader.read(1)
        connection.hang_up()

    client = make_client()
    async with ScriptedServer(script) as server:
        with pytest.raises(TlsError):
            await within(client.send(post(server.url.replace("http://", "https://"))))


async def test_an_extra_ca_file_that_cannot_be_read_is_told_and_not_ignored(make_client: MakeClient) -> None:
    client = make_client(extra_ca_file="/nonexistent/ca.pem")
    async with ScriptedServer(repeating(answer(b"ok"))) as server:
        with pytest.raises(UpstreamError) as caught:
            await within(client.send(post(server.url.replace("http://", "https://"))))
        assert caught.value.phase == "tls"
        assert server.accepted == 0


async def test_a_large_exchange_over_tls_arrives_whole(make_client: MakeClient, local_ca: LocalCa) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file), high_water_bytes=50_000)
    body = bytes(range(256)) * 8_000

    async def script(connection: ServerConnection) -> None:
        while True:
            await connection.send(answer((await connection.request()).body))

    async with ScriptedServer(script, ssl_context=local_ca.server_context("localhost")) as server:
        request = UpstreamRequest(method="POST", url=f"https://localhost:{server.port}/", body=body)
        for _ in range(2):
            response = await within(client.send(request))
            received = b""
            async for piece in response:
                received += piece
            assert received == body
        assert server.accepted == 1


async def test_cancelling_a_tls_exchange_reaches_the_server(make_client: MakeClient, local_ca: LocalCa) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    asked, gone = asyncio.Event(), asyncio.Event()

    async def script(connection: ServerConnection) -> None:
        await connection.request()
        asked.set()
        await connection.closed_by_peer()
        gone.set()

    async with ScriptedServer(script, ssl_context=local_ca.server_context("localhost")) as server:
        sending = asyncio.create_task(client.send(post(f"https://localhost:{server.port}/")), name="send")
        await within(asked.wait())
        sending.cancel()
        await asyncio.wait([sending])
        await within(gone.wait())

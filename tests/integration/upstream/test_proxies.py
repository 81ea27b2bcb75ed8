"""Outbound proxies: tunnels for both URL schemes, refusals that keep their code, and no proxy where none is wanted."""

import socket

import pytest

from host.upstream import ConnectError, InvalidRequest, ProxyError, TlsError, UpstreamClient, UpstreamRequest, tcp
from tests.support.ports import reserved_port
from tests.support.proxies import ConnectProxy, Socks5Proxy
from tests.support.upstream_client import LocalCa, MakeClient
from tests.support.upstream_servers import ScriptedServer, ServerConnection, answer, repeating, within


def get(url: str, proxy_url: str | None) -> UpstreamRequest:
    return UpstreamRequest(method="GET", url=url, proxy_url=proxy_url)


async def fetch(client: UpstreamClient, url: str, proxy_url: str | None) -> bytes:
    response = await within(client.send(get(url, proxy_url)))
    return await within(response.read())


async def test_a_plain_url_goes_through_a_connect_tunnel_and_the_tunnel_is_reused(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server, ConnectProxy() as proxy:
        for _ in range(3):
            assert await fetch(client, server.url, f"http://127.0.0.1:{proxy.port}") == b"ok"
        assert proxy.asked == [f"127.0.0.1:{server.port}"]
        assert proxy.heads == [
            f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()
        ]


@pytest.mark.parametrize("proxy_tls", [False, True], ids=["http-proxy", "https-proxy"])
async def test_an_https_url_is_verified_end_to_end_through_the_tunnel(
    make_client: MakeClient, local_ca: LocalCa, proxy_tls: bool
) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    context = local_ca.server_context("api.example")
    proxy = ConnectProxy(
        ssl_context=local_ca.server_context("localhost") if proxy_tls else None, resolve={"api.example": "127.0.0.1"}
    )
    async with ScriptedServer(repeating(answer(b"ok")), ssl_context=context) as server, proxy:
        proxy_url = f"{'https' if proxy_tls else 'http'}://localhost:{proxy.port}"
        for _ in range(2):
            assert await fetch(client, f"https://api.example:{server.port}/", proxy_url) == b"ok"
        assert proxy.asked == [f"api.example:{server.port}"]
        with pytest.raises(TlsError):
            await fetch(client, f"https://localhost:{server.port}/", proxy_url)


async def test_a_plain_url_through_a_tls_proxy(make_client: MakeClient, local_ca: LocalCa) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    proxy = ConnectProxy(ssl_context=local_ca.server_context("localhost"))
    async with ScriptedServer(repeating(answer(b"ok"))) as server, proxy:
        assert await fetch(client, server.url, f"https://localhost:{proxy.port}") == b"ok"


async def test_a_proxy_with_a_bad_certificate_is_a_proxy_error(client: UpstreamClient, local_ca: LocalCa) -> None:
    async with ConnectProxy(ssl_context=local_ca.server_context("localhost")) as proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"https://localhost:{proxy.port}")
    assert (caught.value.phase, caught.value.proxy_status) == ("proxy", None)


async def test_the_proxy_gets_percent_decoded_credentials_and_the_upstream_none(client: UpstreamClient) -> None:
    heads: list[bytes] = []

    async def script(connection: ServerConnection) -> None:
        heads.append((await connection.request()).head)
        await connection.send(answer(b"ok"))
        await connection.closed_by_peer()

    proxy = ConnectProxy(user="us@er", password="p:ss/word")
    async with ScriptedServer(script) as server, proxy:
        assert await fetch(client, server.url, f"http://us%40er:p%3Ass%2Fword@127.0.0.1:{proxy.port}") == b"ok"
    assert b"authorization" not in heads[0].lower()


@pytest.mark.parametrize("status", [403, 407, 502])
async def test_a_refused_tunnel_keeps_the_status_of_the_proxy_apart_from_any_upstream_status(
    client: UpstreamClient, status: int
) -> None:
    proxy = ConnectProxy(refusal=f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno".encode())
    async with proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"http://user:secret@127.0.0.1:{proxy.port}")
    error = caught.value
    assert (error.phase, error.proxy_status, error.bytes_sent) == ("proxy", status, False)
    assert "secret" not in str(error)


async def test_wrong_proxy_credentials_are_a_407(client: UpstreamClient) -> None:
    async with ConnectProxy(user="user", password="right") as proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"http://user:wrong@127.0.0.1:{proxy.port}")
    assert caught.value.proxy_status == 407


@pytest.mark.parametrize(
    "refusal",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5_000,
        b"",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK",
    ],
    ids=["not-http", "huge-head", "hangs-up", "bytes-of-its-own"],
)
async def test_a_proxy_that_answers_nonsense_is_a_proxy_error(client: UpstreamClient, refusal: bytes) -> None:
    async with ConnectProxy(refusal=refusal) as proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"http://127.0.0.1:{proxy.port}")
    assert caught.value.proxy_status is None


@pytest.mark.parametrize("scheme", ["http", "https", "socks4", "socks4a", "socks5", "socks5h"])
async def test_a_proxy_that_is_not_there_is_a_proxy_error_and_never_a_direct_connection(
    client: UpstreamClient, scheme: str
) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server:
        with reserved_port() as port, pytest.raises(ProxyError):
            await fetch(client, server.url, f"{scheme}://127.0.0.1:{port}")
        assert server.accepted == 0


async def test_a_socks5_tunnel_carries_plain_and_tls_exchanges(make_client: MakeClient, local_ca: LocalCa) -> None:
    client = make_client(extra_ca_file=str(local_ca.ca_file))
    context = local_ca.server_context("127.0.0.1")
    async with (
        ScriptedServer(repeating(answer(b"plain"))) as plain,
        ScriptedServer(repeating(answer(b"tls")), ssl_context=context) as tls,
        Socks5Proxy() as proxy,
    ):
        for _ in range(2):
            assert await fetch(client, plain.url, f"socks5://127.0.0.1:{proxy.port}") == b"plain"
            assert await fetch(client, tls.url, f"socks5://127.0.0.1:{proxy.port}") == b"tls"
        assert proxy.asked == [f"127.0.0.1:{plain.port}", f"127.0.0.1:{tls.port}"]


async def test_socks5h_leaves_the_name_to_the_proxy(client: UpstreamClient) -> None:
    proxy = Socks5Proxy(user="user", password="pass", resolve={"only.proxy.example": "127.0.0.1"})
    async with ScriptedServer(repeating(answer(b"ok"))) as server, proxy:
        url = f"http://only.proxy.example:{server.port}/"
        assert await fetch(client, url, f"socks5h://user:pass@127.0.0.1:{proxy.port}") == b"ok"
        assert proxy.asked == [f"only.proxy.example:{server.port}"]


async def test_a_socks5_refusal_keeps_its_code(client: UpstreamClient) -> None:
    async with Socks5Proxy(reply_code=2) as proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"socks5://127.0.0.1:{proxy.port}")
    assert (caught.value.socks_code, caught.value.proxy_status) == (2, None)


async def test_wrong_socks5_credentials_are_a_proxy_error(client: UpstreamClient) -> None:
    async with Socks5Proxy(user="user", password="right") as proxy:
        with pytest.raises(ProxyError) as caught:
            await fetch(client, "http://127.0.0.1:9/", f"socks5://user:wrong@127.0.0.1:{proxy.port}")
    assert "wrong" not in str(caught.value)


async def test_credentials_that_do_not_fit_into_socks_are_a_proxy_error(client: UpstreamClient) -> None:
    async with Socks5Proxy(user="user") as proxy:
        with pytest.raises(ProxyError):
            await fetch(client, "http://127.0.0.1:9/", f"socks5://{'u' * 300}:p@127.0.0.1:{proxy.port}")


@pytest.mark.parametrize("setting", [None, "", "direct", "NONE", " Direct "])
async def test_these_settings_mean_no_proxy_whatever_the_environment_says(
    client: UpstreamClient, setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reserved_port() as port:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        async with ScriptedServer(repeating(answer(b"ok"))) as server:
            assert await fetch(client, server.url, setting) == b"ok"


@pytest.mark.parametrize("setting", ["ftp://127.0.0.1:1", "127.0.0.1:8080", "http://", "socks5://:1080", "http://h:x"])
async def test_a_proxy_setting_that_is_not_understood_is_refused(client: UpstreamClient, setting: str) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server:
        with pytest.raises(InvalidRequest):
            await fetch(client, server.url, setting)
        assert server.accepted == 0


async def test_connections_through_different_proxies_are_never_shared(client: UpstreamClient) -> None:
    async with ScriptedServer(repeating(answer(b"ok"))) as server, ConnectProxy() as one, ConnectProxy() as two:
        for proxy_url in (None, f"http://127.0.0.1:{one.port}", f"http://127.0.0.1:{two.port}"):
            await fetch(client, server.url, proxy_url)
        assert server.accepted == 3
        assert (len(one.asked), len(two.asked)) == (1, 1)


async def test_a_refused_connection_and_an_unknown_name_are_connect_errors(
    client: UpstreamClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = tcp._resolve

    async def without_a_network(host: str, port: int) -> list[tcp.AddressInfo]:
        # Whoever answers for names on this machine may take longer than the connect timeout to say no.
        if host == "name.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return await resolve(host, port)

    monkeypatch.setattr(tcp, "_resolve", without_a_network)
    with reserved_port() as port:
        for url in (f"http://127.0.0.1:{port}/", "http://name.invalid/"):
            with pytest.raises(ConnectError) as caught:
                await fetch(client, url, None)
            assert (caught.value.phase, caught.value.bytes_sent, caught.value.timed_out) == ("connect", False, False)

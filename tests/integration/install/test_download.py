"""Downloads over real sockets: what is fetched, what is refused, and that every wait ends."""

import asyncio
import ssl

import pytest
import trustme
from aiohttp import web

from host.install.download import DownloadError, DownloadSettings, download
from tests.integration.install.conftest import Shelf

SETTINGS = DownloadSettings(idle_timeout_s=60.0, total_timeout_s=60.0)


async def fetched(url: str, *, max_bytes: int = 1000, settings: DownloadSettings = SETTINGS) -> bytes:
    body = bytearray()
    await download(url, max_bytes=max_bytes, settings=settings, write=body.extend)
    return bytes(body)


async def test_the_body_arrives_whole_and_the_server_learns_who_asks(shelf: Shelf) -> None:
    shelf.content["/a.zip"] = b"content"
    assert await fetched(f"{shelf.url}/a.zip") == b"content"
    assert {agent.split("/")[0] for agent in shelf.user_agents} == {"jackfield"}


async def test_a_body_that_is_too_large_is_given_up_at_the_bound(shelf: Shelf) -> None:
    shelf.content["/a.zip"] = b"x" * 5_000_000
    with pytest.raises(DownloadError, match="larger than 1000 bytes"):
        await fetched(f"{shelf.url}/a.zip")


@pytest.mark.parametrize("status", [204, 206, 304, 403, 404, 500])
async def test_only_status_200_is_a_download(shelf: Shelf, status: int) -> None:
    shelf.content["/a.zip"] = status
    with pytest.raises(DownloadError, match=f"status {status}"):
        await fetched(f"{shelf.url}/a.zip?token=secret")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_on_this_machine_are_followed(shelf: Shelf, status: int) -> None:
    shelf.content["/b.zip"] = b"content"
    shelf.content["/a.zip"], shelf.redirect_status = "/b.zip", status
    assert await fetched(f"{shelf.url}/a.zip") == b"content"


async def test_a_circle_of_redirects_ends(shelf: Shelf) -> None:
    shelf.content["/a.zip"] = "/a.zip"
    with pytest.raises(DownloadError, match="more than 5 redirects"):
        await fetched(f"{shelf.url}/a.zip")
    assert len(shelf.asked) == 6


@pytest.mark.parametrize(
    ("target", "says"),
    [("http://192.0.2.1/x", "not https"), ("ftp://127.0.0.1/x", "not an http"), ("file:///etc/passwd", "not an http")],
)
async def test_a_redirect_to_anything_less_safe_is_refused(shelf: Shelf, target: str, says: str) -> None:
    shelf.content["/a.zip"] = target
    with pytest.raises(DownloadError, match=says):
        await fetched(f"{shelf.url}/a.zip")


@pytest.mark.parametrize("url", ["http://192.0.2.1/x.zip", "http://localhost.example/x.zip", "ftp://127.0.0.1/x"])
async def test_anything_but_https_is_refused_before_a_connection_is_made(url: str) -> None:
    with pytest.raises(DownloadError):
        await fetched(url)


async def test_the_query_of_a_url_is_in_no_message(shelf: Shelf) -> None:
    with pytest.raises(DownloadError) as caught:
        await fetched(f"{shelf.url}/a.zip?token=secret")
    assert "secret" not in str(caught.value)


async def test_https_is_verified_with_the_operators_authorities_and_never_redirected_to_http(
    shelf: Shelf, tmp_path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/down.zip":
            return web.Response(status=302, headers={"Location": f"{shelf.url}/a.zip"})
        return web.Response(body=b"over tls")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        trusting = DownloadSettings(extra_ca_file=str(tmp_path / "ca.pem"), total_timeout_s=60.0)
        assert await fetched(f"{url}/a.zip", settings=trusting) == b"over tls"
        with pytest.raises(DownloadError, match=r"redirects to .* not https"):
            await fetched(f"{url}/down.zip", settings=trusting)
        assert shelf.asked == []
        with pytest.raises(DownloadError):
            await fetched(f"{url}/a.zip")
    finally:
        await runner.cleanup()


async def test_a_server_that_never_ends_its_answer_is_given_up(within) -> None:
    reached = asyncio.Event()

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
        reached.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DownloadError, match=r"not complete after 0\.3 s"):
            await within(fetched(f"http://127.0.0.1:{port}/a.zip", settings=DownloadSettings(total_timeout_s=0.3)))
        assert reached.is_set()

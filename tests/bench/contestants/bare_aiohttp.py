"""The yardstick: a reverse proxy in aiohttp and uvloop that does nothing but forward.

    bare_aiohttp.py PORT UPSTREAM_URL

It is what one would write in an afternoon with care for the obvious: one client session, no limit on connections, bytes
untouched, streams forwarded as they come. Keep it as it is, since every ratio of the suite is measured against it.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from typing import Final

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

HOP_BY_HOP: Final = frozenset(
    {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)
UPSTREAM_URL: Final = web.AppKey("upstream_url", str)
UPSTREAM_SESSION: Final = web.AppKey("upstream_session", ClientSession)


def end_to_end(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers that belong to the message and not to one connection."""
    return [(name, value) for name, value in headers if name.lower() not in HOP_BY_HOP]


async def forward(request: web.Request) -> web.StreamResponse:
    """Send the request on and its answer back, streaming when the upstream does."""
    body = await request.read()
    async with request.app[UPSTREAM_SESSION].request(
        request.method,
        request.app[UPSTREAM_URL] + request.path_qs,
        data=body or None,
        headers=end_to_end(request.headers.items()),
        allow_redirects=False,
    ) as answer:
        headers = end_to_end(answer.headers.items())
        if "Content-Length" in answer.headers:
            return web.Response(status=answer.status, body=await answer.read(), headers=dict(headers))
        response = web.StreamResponse(status=answer.status, headers=dict(headers))
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response


async def hold_session(app: web.Application) -> AsyncIterator[None]:
    """Own the one client session from start to stop."""
    session = ClientSession(
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=600),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
    )
    app[UPSTREAM_SESSION] = session
    yield
    await session.close()


def main() -> None:
    """Serve until SIGTERM."""
    port, upstream_url = int(sys.argv[1]), sys.argv[2]
    app = web.Application(client_max_size=64 << 20)
    app[UPSTREAM_URL] = upstream_url
    app.cleanup_ctx.append(hold_session)
    app.router.add_route("*", "/{path:.*}", forward)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=lambda *_: None)


if __name__ == "__main__":
    main()

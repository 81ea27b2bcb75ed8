"""CPU cost of one upstream request, by hand: `python tests/bench/upstream_client.py [--aiohttp] [--asyncio]`.

Prints the client process's CPU time per request (1 KB each way, 64 at a time) and per event stream of 64 events,
against a server in a process of its own; with `--aiohttp` also for aiohttp's client, for comparison. Bounded: a fixed
number of requests. `--url` measures against another server that answers like the built-in one.
"""

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from host.upstream import UpstreamClient, UpstreamRequest  # noqa: E402 - runs as a script from anywhere

CONCURRENCY = 64
BODY = b'{"model":"mock","messages":[{"role":"user","content":"' + b"x" * 900 + b'"}]}'
STREAM_BODY = b'{"stream":true,' + BODY[1:]
HEADERS = [
    ("Content-Type", "application/json"),
    ("Accept", "application/json"),
    ("Authorization", "Bearer 0123456789abcdef0123456789abcdef"),
    ("User-Agent", "bench"),
    ("X-Request-Id", "0123456789abcdef"),
]
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 22 Nov 2026 12:00:00 GMT\r\nServer: bench\r\n"
    b"X-Request-Id: 0123456789abcdef\r\nX-Ratelimit-Limit-Requests: 10000\r\nX-Ratelimit-Remaining-Requests: 9999\r\n"
    b"Processing-Ms: 12\r\nConnection: keep-alive\r\n"
)
PLAIN = ANSWER_HEAD + b"Content-Length: 1024\r\n\r\n" + b"x" * 1024
EVENT = b"data: " + b"x" * 240 + b"\n\n"
EVENTS = [b"%x\r\n%b\r\n" % (len(EVENT), EVENT)] * 64


class BenchServer(asyncio.Protocol):
    """Answers whole requests that come in one read, which on loopback they do; one write per event."""

    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(b"}"):
            stream = b'"stream":true' in self._received
            self._received = b""
            if stream:
                self._send_event(-1)
            else:
                self._transport.write(PLAIN)  # type: ignore[attr-defined]

    def _send_event(self, index: int) -> None:
        if index == len(EVENTS):
            self._transport.write(b"0\r\n\r\n")  # type: ignore[attr-defined]
            return
        head = ANSWER_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
        self._transport.write(head if index < 0 else EVENTS[index])  # type: ignore[attr-defined]
        asyncio.get_running_loop().call_soon(self._send_event, index + 1)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(BenchServer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent is gone


async def measure(name: str, exchange: Callable[[], Awaitable[object]], count: int) -> None:
    async def worker(share: int) -> None:
        for _ in range(share):
            await exchange()

    await asyncio.gather(*(worker(3) for _ in range(CONCURRENCY)))
    share = count // CONCURRENCY
    cpu, wall = time.process_time(), time.perf_counter()
    async with asyncio.timeout(120):
        await asyncio.gather(*(worker(share) for _ in range(CONCURRENCY)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = share * CONCURRENCY
    print(f"{name:<24} {cpu / done * 1e6:8.1f} µs CPU   {wall / done * 1e6:8.1f} µs wall   {done} done")


async def measure_own(url: str, count: int) -> None:
    client = UpstreamClient()

    async def plain() -> None:
        request = UpstreamRequest(method="POST", url=url, headers=HEADERS, body=BODY)
        response = await client.send(request)
        assert len(await response.read()) > 500

    async def stream() -> None:
        request = UpstreamRequest(method="POST", url=url, headers=HEADERS, body=STREAM_BODY)
        async for _ in await client.send(request):
            pass

    await measure("own, plain", plain, count)
    await measure("own, stream of 64", stream, count // 10)
    await client.close()


async def measure_aiohttp(url: str, count: int) -> None:
    import aiohttp

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:

        async def plain() -> None:
            async with session.post(url, data=BODY, headers=HEADERS) as response:
                assert len(await response.read()) > 500

        async def stream() -> None:
            async with session.post(url, data=STREAM_BODY, headers=HEADERS) as response:
                async for _ in response.content.iter_any():
                    pass

        await measure("aiohttp, plain", plain, count)
        await measure("aiohttp, stream of 64", stream, count // 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--aiohttp", action="store_true")
    parser.add_argument("--asyncio", action="store_true", help="the standard event loop instead of uvloop")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.asyncio:
        run = asyncio.run
    else:
        import uvloop

        run = uvloop.run
    if options.serve:
        run(serve())
        return
    server = None
    url = options.url
    if url is None:
        command = [sys.executable, __file__, "--serve"]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1/chat/completions"
    try:
        run(measure_own(url, options.count))
        if options.aiohttp:
            run(measure_aiohttp(url, options.count))
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=10)


if __name__ == "__main__":
    main()

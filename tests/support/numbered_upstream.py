"""A provider that counts: it knows every request by the id in its body, and numbers and dates every event it sends.

A chat completion with `user` set is answered with that id. With `stream: true` the answer has as many events as
`metadata.events` says, one each `metadata.interval_ms`, whose contents are `<number> <monotonic time in ns>`.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, cast

_JSON_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"%d %d"},"finish_reason":null}]}\n\n'
)
_END: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{},'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n\n'
    b"data: [DONE]\n\n"
)


class NumberedUpstream:
    """Started by `numbered_upstream()`; `url` ends in `/v1`."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: Counter[str] = Counter()
        """How often each id was asked for."""
        self.unfinished: list[str] = []
        """Ids of streams whose reader left before their end."""


class _Connection(asyncio.Protocol):
    def __init__(self, upstream: NumberedUpstream) -> None:
        self._upstream = upstream
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.WriteTransport
        self._timer: asyncio.TimerHandle | None = None
        self._streaming = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._streaming:
            self._upstream.unfinished.append(self._streaming)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line[:15].lower() == b"content-length:")
        if len(body) < length:
            return
        self._received = b""
        self._answer(json.loads(body))

    def _answer(self, asked: dict[str, Any]) -> None:
        number = str(asked.get("user", ""))
        self._upstream.asked[number] += 1
        if asked.get("stream"):
            wanted = asked["metadata"]
            self._transport.write(_STREAM_HEAD)
            self._streaming = number
            self._send_event(0, int(wanted["events"]), int(wanted["interval_ms"]) / 1000, self._loop.time())
            return
        message = {"role": "assistant", "content": number}
        answer = {
            "id": "c",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
        data = json.dumps(answer).encode()
        self._transport.write(_JSON_HEAD % len(data) + data)

    def _send_event(self, number: int, events: int, interval_s: float, due_s: float) -> None:
        if number == events:
            self._streaming, self._timer = "", None
            self._transport.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_END), _END))
            return
        event = _EVENT % (number, time.monotonic_ns())
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        due_s += interval_s
        self._timer = self._loop.call_at(due_s, self._send_event, number + 1, events, interval_s, due_s)


@asynccontextmanager
async def numbered_upstream() -> AsyncIterator[NumberedUpstream]:
    """On a free loopback port, in this event loop."""
    upstream = NumberedUpstream()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(upstream), "127.0.0.1", 0, backlog=1024)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        server.close()

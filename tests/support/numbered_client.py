"""Clients of the proxy that give every request an id, and know exactly what came back."""

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from host.upstream.client import UpstreamClient
from host.upstream.errors import UpstreamError
from host.upstream.model import UpstreamRequest

_CONTENT: Final = re.compile(rb'"content": ?"(\d+) (\d+)"')
_HEADERS: Final = (("Content-Type", "application/json"), ("Accept-Encoding", "identity"))

EventObserver: TypeAlias = Callable[[int, int], None]
"""`on_event(sent_ns, received_ns)` of every event of a stream, on the monotonic clock."""


@dataclass(slots=True)
class Outcome:
    """What one request came to, as its client saw it. `problem` empty: complete and right."""

    number: str
    stream: bool
    status: int = 0
    request_id: str = ""
    problem: str = ""
    duration_s: float = 0.0


class NumberedClient:
    """Requests to one proxy over kept-alive connections."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._client = UpstreamClient()

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, number: str, model: str) -> Outcome:
        """A request without a stream; its answer has to name the id."""
        outcome = Outcome(number, stream=False)
        began_s = time.monotonic()
        try:
            response = await self._client.send(self._request(number, model, {}))
            body = await response.read()
        except UpstreamError as error:
            outcome.problem = str(error)
            return outcome
        outcome.duration_s = time.monotonic() - began_s
        outcome.status = response.status
        outcome.request_id = dict(response.headers).get("x-request-id", "")
        if response.status != 200:
            outcome.problem = f"{response.status}: {body[:300].decode(errors='replace')}"
        elif f'"content": "{number}"'.encode() not in body:
            outcome.problem = f"a wrong answer: {body[:300].decode(errors='replace')}"
        return outcome

    async def follow(
        self, number: str, model: str, *, events: int, interval_ms: int, on_event: EventObserver | None = None
    ) -> Outcome:
        """A stream to its end; its events have to be numbered without a gap."""
        outcome = Outcome(number, stream=True)
        metadata = {"events": str(events), "interval_ms": str(interval_ms)}
        began_s = time.monotonic()
        data, tail, seen, ended = b"", b"", 0, False
        try:
            response = await self._client.send(self._request(number, model, {"stream": True, "metadata": metadata}))
            outcome.status = response.status
            outcome.request_id = dict(response.headers).get("x-request-id", "")
            if response.status != 200:
                outcome.problem = f"{response.status}: {(await response.read())[:300].decode(errors='replace')}"
                return outcome
            async for piece in response:
                now_ns = time.monotonic_ns()
                data, _, tail = (tail + piece).rpartition(b"\n\n")
                for found in _CONTENT.finditer(data):
                    if int(found[1]) != seen and not outcome.problem:
                        outcome.problem = f"event {int(found[1])} came where {seen} was due"
                    seen += 1
                    if on_event is not None:
                        on_event(int(found[2]), now_ns)
                ended = ended or b"data: [DONE]" in data
        except UpstreamError as error:
            outcome.problem = f"after {seen} of {events} events: {error}"
            return outcome
        outcome.duration_s = time.monotonic() - began_s
        if not outcome.problem and (seen != events or not ended):
            outcome.problem = f"it ended after {seen} of {events} events: {data[-300:].decode(errors='replace')}"
        return outcome

    def _request(self, number: str, model: str, more: Mapping[str, object]) -> UpstreamRequest:
        body = {"model": model, "user": number, "messages": [{"role": "user", "content": "Hello"}], **more}
        return UpstreamRequest(method="POST", url=self._url, headers=_HEADERS, body=json.dumps(body).encode())

"""One request on its way through the web layer, and the numbers that its log line and metrics need."""

from collections.abc import Callable
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from host.config.model import Config
from host.observe.logs import RequestLine, mask_query
from host.pipeline.request import Principal
from host.web.answer import StreamedBody
from host.web.body import read_body
from host.web.decoding import too_large
from host.web.render_errors import Family
from pluginabi.immutable import EMPTY_HEADERS, Headers, freeze_headers

STATUS_CLIENT_GONE = 499


class Exchange:
    """Mutable, owned by the handler of its request.

    Most members keep their class-level default for most requests, which is cheaper than setting them one by one.
    """

    query: Headers = EMPTY_HEADERS
    headers: Headers = EMPTY_HEADERS
    client_address = ""
    request_id = ""
    label = ""
    """Method and route template, once the route is known."""
    family = Family.OPENAI
    protocol = "openai"
    principal: Principal | None = None
    out: StreamedBody | None = None
    """Set once a keep-alive has committed the head of a whole answer."""
    status = 0
    sent_bytes = 0
    first_byte_s: float | None = None
    streamed = False
    failed_code = ""
    times_s: dict[str, float] | None = None
    """Plugin -> seconds, when the client is told."""
    read_s = 0.0
    """Spent waiting for the body, when the client is told."""
    _body: bytes | None = None

    def __init__(self, request: web.BaseRequest, *, config: Config, clock: Callable[[], float]) -> None:
        self.request = request
        self.config = config
        self.clock = clock
        self.started_s = clock()
        self.method = request.method
        self.path, _, self.raw_query = request.raw_path.partition("?")
        if "%" in self.path:
            self.path = unquote(self.path)
        if self.raw_query:
            self.query = freeze_headers(parse_qsl(self.raw_query, keep_blank_values=True))

    def body_at_hand(self) -> bytes | None:
        """The body if it needs no waiting and no decoding: most come in one packet with their head.

        Raises RequestError 413.
        """
        if self._body is not None:
            return self._body
        content = self.request.content
        if not content.is_eof() or "content-encoding" in self.headers:
            return None
        body = content.read_nowait()
        limits = self.config.limits
        if len(body) > limits.request_body or len(body) > limits.decoded_body:
            raise too_large(min(limits.request_body, limits.decoded_body))
        self._body = body
        return body

    async def body(self) -> bytes:
        """The decoded body, read once. Raises RequestError 413 or 400. Tells a waiting client to go on sending."""
        if self._body is None:
            headers, limits = self.headers, self.config.limits
            waits = headers["expect"][0].lower() == "100-continue" if "expect" in headers else False
            if waits and self.request.transport is not None:
                self.request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            began_s = self.clock()
            self._body = await read_body(
                self.request,
                encodings=headers.get("content-encoding", ()),
                max_bytes=limits.request_body,
                max_decoded_bytes=limits.decoded_body,
            )
            self.read_s = self.clock() - began_s
        return self._body

    def log_line(self, ended_s: float) -> RequestLine:
        """The log line of this request, secrets masked."""
        return RequestLine(
            request_id=self.request_id,
            status=self.status,
            duration_ms=round((ended_s - self.started_s) * 1000, 1),
            client=self.client_address,
            method=self.method,
            path=f"{self.path}?{mask_query(self.raw_query)}" if self.raw_query else self.path,
            caller=self.principal.name if self.principal is not None else "",
            streamed_bytes=self.sent_bytes if self.streamed else None,
            error=self.failed_code,
        )

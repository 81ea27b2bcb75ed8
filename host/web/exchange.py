"""One request on its way through the web layer, and the numbers that its log line and metrics need."""

from collections.abc import Callable
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from host.config.model import Config
from host.observe.logs import RequestLine, mask_query
from host.pipeline.request import Principal
from host.web.answer import StreamedBody
from host.web.body import read_body
from host.web.render_errors import Family
from pluginabi.immutable import EMPTY_HEADERS, Headers, freeze_headers

STATUS_CLIENT_GONE = 499


class Exchange:
    """Mutable, owned by the handler of its request."""

    __slots__ = (
        "_body",
        "client_address",
        "clock",
        "config",
        "failed_code",
        "family",
        "first_byte_s",
        "headers",
        "label",
        "method",
        "out",
        "path",
        "principal",
        "protocol",
        "query",
        "raw_query",
        "request",
        "request_id",
        "sent_bytes",
        "started_s",
        "status",
        "streamed",
    )

    def __init__(self, request: web.BaseRequest, *, config: Config, clock: Callable[[], float]) -> None:
        self.request = request
        self.config = config
        self.clock = clock
        self.started_s = clock()
        self.method = request.method
        raw = request.raw_path
        self.path, _, self.raw_query = raw.partition("?")
        if "%" in self.path:
            self.path = unquote(self.path)
        self.query: Headers = EMPTY_HEADERS
        if self.raw_query:
            self.query = freeze_headers(parse_qsl(self.raw_query, keep_blank_values=True))
        self.headers: Headers = EMPTY_HEADERS
        self.client_address = ""
        self.request_id = ""
        self.label = ""
        self.family = Family.OPENAI
        self.protocol = "openai"
        self.principal: Principal | None = None
        self.out: StreamedBody | None = None
        """Set once a keep-alive has committed the head of a whole answer."""
        self.status = 0
        self.sent_bytes = 0
        self.first_byte_s: float | None = None
        self.streamed = False
        self.failed_code = ""
        self._body: bytes | None = None

    async def body(self) -> bytes:
        """The decoded body, read once. Raises RequestError 413 or 400. Tells a waiting client to go on sending."""
        if self._body is None:
            headers, limits = self.headers, self.config.limits
            waits = headers["expect"][0].lower() == "100-continue" if "expect" in headers else False
            if waits and self.request.transport is not None:
                self.request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._body = await read_body(
                self.request,
                encodings=headers.get("content-encoding", ()),
                max_bytes=limits.request_body,
                max_decoded_bytes=limits.decoded_body,
            )
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

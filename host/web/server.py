"""The life of a request in the web layer, from route to written answer."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import msgspec
from aiohttp import web

from host import VERSION
from host.config.model import Config
from host.errors import RequestError
from host.observe.logs import REQUEST_ID as REQUEST_ID_OF_TASK
from host.observe.logs import RequestLog
from host.pipeline.request import ClientRequest, ClientResponse, Principal
from host.tasks import TaskGroup
from host.web import apis, models
from host.web.answer import EVENT_STREAM_TYPE, JSON_TYPE, JSON_UTF8_TYPE, HeadBuilder, StreamedBody, Written, send_whole
from host.web.apis import Api, Call, Inbound
from host.web.body import check_json, empty_head
from host.web.clients import TrustedProxies, is_local_request, peer_address
from host.web.exchange import STATUS_CLIENT_GONE, Exchange
from host.web.headers import REQUEST_ID, header_lines, safe_headers
from host.web.keepalive import KeepAlive
from host.web.ports import AccessPort, GatewayPort, HealthSource, ManagementHandler, RequestMetrics
from host.web.render_errors import Family, client_auth_legacy, render_http
from host.web.routes import Route, Routes
from host.web.streaming import STOPPING, Relay, close_stream, explained
from host.web.timing import timing_line
from host.web.unmatched import explain_unmatched
from pluginabi.errors import ErrorBody
from pluginabi.immutable import freeze_headers

EXAMPLE_API_KEYS = frozenset({"your-api-key", "your-api-key-1", "your-api-key-2", "your-api-key-3"})
"""Keys of sample configurations: whoever left one in has an open proxy."""

UNSAFE_KEY_CODE = "unsafe_example_api_key"
UNSAFE_KEY_MESSAGE = "api-keys holds a key of the sample configuration; replace it with one of your own"

MANAGED = "/v0/"
"""Where the management API and the pages of plugins are."""
LANDING = "/callback"
"""Where browsers come back from a login, behind the provider's name."""

STOP_S = 2.0
"""How long cancelled requests may take to leave."""

_STREAM_LINES = b"Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"


class Frontend:
    """Serves every request of one listener."""

    def __init__(
        self,
        gateway: GatewayPort,
        access: AccessPort,
        *,
        state: Callable[[], Config],
        health: HealthSource,
        metrics: RequestMetrics,
        tasks: TaskGroup,
        management: ManagementHandler | None = None,
    ) -> None:
        self._gateway = gateway
        self._access = access
        self._state = state
        self._health = health
        self._metrics = metrics
        self._tasks = tasks
        self._management = management
        self._heads = HeadBuilder(time.monotonic)
        self._random = random.Random()
        self._log = RequestLog()
        self._routes = self._make_routes()
        self._running: set[asyncio.Task[object]] = set()
        self._stopping = False
        self._config: Config | None = None
        self._proxies = TrustedProxies(())
        self._unsafe_keys = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; cancelled when its client is gone."""
        exchange = Exchange(request, config=self._current_config(), clock=time.monotonic)
        self._metrics.request_started()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            if exchange.method == "OPTIONS" and not exchange.path.startswith(MANAGED):
                return self._send(exchange, 204, "", b"")
            found = self._routes.find(exchange.method, exchange.path)
            if found is None:
                return await self._managed(exchange) or self._unmatched(exchange)
            route, rest = found
            exchange.label = route.label
            exchange.headers = freeze_headers(request.headers.items())
            exchange.client_address = self._proxies.client_address(peer_address(request), exchange.headers)
            return await route.handler(exchange, rest)
        except asyncio.CancelledError:
            unanswered = exchange.status == 0 or exchange.out is not None
            if unanswered and self._stopping and request.transport is not None:
                self._send_error(exchange, STOPPING)
            elif unanswered:
                exchange.status = STATUS_CLIENT_GONE  # whatever a keep-alive has committed
            raise
        except Exception as error:
            return self._fail(exchange, error)
        finally:
            self._running.discard(task)
            self._finished(exchange)

    async def stop(self, grace_s: float) -> None:
        """Wait `grace_s` for running requests, then end the others: with a 503, or an error event inside a stream."""
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        self._stopping = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_S)
        await self._tasks.stop()

    # -- AI endpoints

    async def _serve_api(self, exchange: Exchange, rest: str, *, api: Api) -> Written:
        exchange.family, exchange.protocol = api.family, api.protocol
        if exchange.config.server_timing:
            exchange.times_s = {}
        principal = await self._admit(exchange)
        body = exchange.body_at_hand()
        if body is None:
            body = await exchange.body()
        head = check_json(body) if body or api.body_required else empty_head()
        call = api.read(Inbound(headers=exchange.headers, query=exchange.query, rest=rest, body=body, head=head))
        exchange.protocol = call.protocol
        if rest:
            exchange.label = f"{api.label}:{rest.rsplit(':', 1)[-1]}"
        request = ClientRequest(
            request_id=exchange.request_id,
            protocol=call.protocol,
            operation=call.operation,
            endpoint=exchange.label,
            model=call.model,
            stream=call.stream,
            body=call.body,
            alt=call.alt,
            headers=exchange.headers,
            query=exchange.query,
            principal=principal,
            client_address=exchange.client_address,
            received_at_s=exchange.started_s,
            times_s=exchange.times_s,
        )
        if call.stream:
            return await self._stream(exchange, call, request)
        if exchange.config.nonstream_keepalive_interval > 0 and call.keep_alive:
            return await self._whole_kept_alive(exchange, call, request)
        return self._send_response(exchange, call, await self._gateway.execute(request))

    async def _stream(self, exchange: Exchange, call: Call, request: ClientRequest) -> Written:
        opened = await self._gateway.execute_stream(request)
        if isinstance(opened, ClientResponse):
            return self._send_response(exchange, call, opened)
        assert call.writer is not None
        extra = header_lines(safe_headers(opened.headers))

        def head(content_type: str) -> bytes:
            own = _STREAM_LINES if content_type == EVENT_STREAM_TYPE else b""
            return self._heads.build(200, content_type, own + self._request_lines(exchange) + extra)

        relay = Relay(exchange, opened, call.writer(), head)
        try:
            written = await relay.run()
        finally:
            # In a task of its own, so that neither a second cancellation nor a slow upstream gets in its way.
            self._tasks.start(close_stream(opened, relay.close_reason), name="close-stream")
        if isinstance(written, ErrorBody):
            return self._send_error(exchange, written)
        return written

    async def _whole_kept_alive(self, exchange: Exchange, call: Call, request: ClientRequest) -> Written:
        interval_s = exchange.config.nonstream_keepalive_interval
        keep_alive = KeepAlive(interval_s, lambda: self._beat_whole(exchange))
        try:
            response = await self._gateway.execute(request)
        finally:
            keep_alive.stop()
        return self._send_response(exchange, call, response)

    def _beat_whole(self, exchange: Exchange) -> None:
        """Commit 200 and send white space, which JSON allows before a document."""
        if exchange.out is None:
            exchange.status = 200
            exchange.first_byte_s = exchange.clock()
            head = self._heads.build(200, JSON_TYPE, self._request_lines(exchange))
            exchange.out = StreamedBody(exchange.request, head)
        if not exchange.request.protocol.writing_paused:
            exchange.out.write(b"\n")

    def _send_response(self, exchange: Exchange, call: Call, response: ClientResponse) -> Written:
        body = response.body
        if call.convert is not None and not response.direct:
            body = call.convert(body)
        if exchange.out is not None:
            # A keep-alive has committed the head: only the body is left to say.
            return self._finish_committed(exchange, body)
        if response.direct:
            headers = safe_headers(response.headers, keep_content_type=True)
            content_type = "" if any(name.lower() == "content-type" for name, _ in headers) else JSON_TYPE
            return self._send(exchange, response.status, content_type, body, header_lines(headers))
        extra = header_lines(safe_headers(response.headers)) if response.headers else b""
        # The upstream's own kind of success means nothing to the client.
        status = 200 if response.status < 300 else response.status
        return self._send(exchange, status, JSON_TYPE, body, extra)

    # -- who may come in

    async def _admit(self, exchange: Exchange) -> Principal:
        """The client's principal. Raises what refuses it, or what a broken auth plugin raises."""
        exchange.request_id = f"{self._random.getrandbits(96):024x}"
        REQUEST_ID_OF_TASK.set(exchange.request_id)
        if self._unsafe_keys:
            raise RequestError(403, UNSAFE_KEY_CODE, UNSAFE_KEY_MESSAGE)
        exchange.principal = await self._access.authenticate(
            request_id=exchange.request_id,
            method=exchange.method,
            path=exchange.path,
            headers=exchange.headers,
            query=exchange.query,
            client_address=exchange.client_address,
            read_body=exchange.body,
            times_s=exchange.times_s,
        )
        return exchange.principal

    # -- model lists

    async def _list_models(self, exchange: Exchange, rest: str, *, shape: models.Shape | None = None) -> Written:
        shape = await self._admit_to_models(exchange, shape)
        return self._send_json(exchange, 200, models.listing(self._gateway.state.listing(), shape))

    async def _one_model(self, exchange: Exchange, rest: str, *, shape: models.Shape | None = None) -> Written:
        shape = await self._admit_to_models(exchange, shape)
        found = models.find(self._gateway.state.listing(), rest)
        if found is None:
            raise models.unknown(rest)
        return self._send_json(exchange, 200, models.entry(found, shape))

    async def _admit_to_models(self, exchange: Exchange, shape: models.Shape | None) -> models.Shape:
        """Whose list is asked for: the path says so, or the client's headers. Raises what refuses the client."""
        shape = shape or models.shape_of(exchange.headers, exchange.query)
        exchange.family = _FAMILY_OF_LIST.get(shape, Family.OPENAI)
        await self._admit(exchange)
        return shape

    # -- the proxy itself

    async def _root(self, exchange: Exchange, rest: str) -> Written:
        document: dict[str, object] = {
            "message": f"Jackfield {VERSION}",
            "endpoints": sorted({route.label for route in self._routes.exact.values() if "/v1" in route.label}),
        }
        if self._unsafe_keys:
            document["warning"] = UNSAFE_KEY_MESSAGE
        return self._send_json(exchange, 200, document)

    async def _healthz(self, exchange: Exchange, rest: str) -> Written:
        return self._send_json(exchange, 200, {"status": "ok"})

    async def _readyz(self, exchange: Exchange, rest: str) -> Written:
        ready, details = self._health.ready()
        return self._send_json(
            exchange, 200 if ready else 503, {"status": "ready" if ready else "not ready", **details}
        )

    async def _show_metrics(self, exchange: Exchange, rest: str) -> Written:
        # Names of callers and models are nobody's business but the operator's.
        if not is_local_request(exchange.client_address, exchange.headers):
            principal = await self._admit(exchange)
            if principal.provider == "anonymous":
                raise RequestError(403, "metrics_refused", "metrics are shown locally and to clients with a key")
        content_type, body = await self._metrics.render(exchange.headers.get("accept", ("",))[0])
        return self._send(exchange, 200, content_type, body)

    async def _upgrade(self, exchange: Exchange, rest: str) -> Written:
        exchange.family, exchange.protocol = Family.RESPONSES, "openai-response"
        await self._admit(exchange)
        raise RequestError(400, "websocket_unsupported", "the Responses API is served over HTTP: use POST")

    async def _managed(self, exchange: Exchange) -> web.StreamResponse | None:
        """The management API's answer, which has no CORS headers: no web page of another host may read it."""
        if self._management is None or not (exchange.path.startswith(MANAGED) or exchange.path.endswith(LANDING)):
            return None
        exchange.client_address = peer_address(exchange.request)
        answer = await self._management(exchange.request)
        if answer is not None:
            exchange.label, exchange.status = "management", answer.status
            exchange.request_id = answer.headers.get(REQUEST_ID, "")
        return answer

    def _unmatched(self, exchange: Exchange) -> Written:
        canonical = self._routes.canonical(exchange.method, exchange.path)
        if canonical is None:
            return self._send_unknown(exchange)
        target = f"{canonical}?{exchange.raw_query}" if exchange.raw_query else canonical
        location = header_lines(safe_headers({"Location": (target,)}))
        return self._send(exchange, 301 if exchange.method == "GET" else 307, "", b"", location)

    def _send_unknown(self, exchange: Exchange) -> Written:
        """404, with words where an SDK shows them to somebody; none about what is managed here."""
        method, path = exchange.method, exchange.path
        told = None
        if not (method == "HEAD" or path.startswith(MANAGED) or path.endswith(LANDING)):
            exchange.headers = freeze_headers(exchange.request.headers.items())
            told = explain_unmatched(method, path, exchange.headers, is_route=self._routes.is_route)
        if told is None:
            return self._send(exchange, 404, "", b"")
        exchange.family, error = told
        return self._send_error(exchange, error)

    # -- writing

    def _send(self, exchange: Exchange, status: int, content_type: str, body: bytes, extra: bytes = b"") -> Written:
        exchange.status = status
        exchange.sent_bytes = len(body)
        exchange.first_byte_s = exchange.clock()
        if exchange.request_id:
            extra = self._request_lines(exchange) + extra
        head = self._heads.build(status, content_type, extra)
        return send_whole(exchange.request, status, head, body, without_body=exchange.method == "HEAD")

    def _send_json(self, exchange: Exchange, status: int, document: object) -> Written:
        return self._send(exchange, status, JSON_UTF8_TYPE, msgspec.json.encode(document))

    def _request_lines(self, exchange: Exchange) -> bytes:
        """What every answer says of its request."""
        line = f"{REQUEST_ID}: {exchange.request_id}\r\n".encode()
        if exchange.times_s is not None:
            total_s = exchange.clock() - exchange.started_s
            line += timing_line(exchange.times_s, total_s=total_s, read_s=exchange.read_s)
        return line

    def _finish_committed(self, exchange: Exchange, body: bytes) -> Written:
        out = exchange.out
        assert out is not None
        out.write(body)
        out.finish()
        exchange.sent_bytes = out.sent
        return Written(exchange.request, 200, keep_alive=out.keep_alive)

    # -- errors

    def _fail(self, exchange: Exchange, error: Exception) -> Written:
        body = explained(error)
        exchange.failed_code = body.code
        if body.code == UNSAFE_KEY_CODE:
            return self._send_json(exchange, body.http_status, {"error": body.code, "message": body.message})
        refused = exchange.principal is None and body.http_status in (401, 403)
        if refused and exchange.config.client_auth.error_envelope == "legacy":
            return self._send(exchange, body.http_status, JSON_UTF8_TYPE, client_auth_legacy(body))
        return self._send_error(exchange, body)

    def _send_error(self, exchange: Exchange, error: ErrorBody) -> Written:
        exchange.failed_code = error.code
        rendered = render_http(
            error, exchange.family, exchange.protocol, passthrough=exchange.config.passthrough_headers
        )
        if exchange.out is not None:
            return self._finish_committed(exchange, rendered.body)
        return self._send(exchange, rendered.status, JSON_TYPE, rendered.body, header_lines(rendered.headers))

    # -- bookkeeping

    def _current_config(self) -> Config:
        config = self._state()
        if config is not self._config:
            self._config = config
            self._proxies = TrustedProxies(config.trusted_proxies)
            self._unsafe_keys = any(key.key.strip() in EXAMPLE_API_KEYS for key in config.api_keys)
        return config

    def _finished(self, exchange: Exchange) -> None:
        status = exchange.status or STATUS_CLIENT_GONE
        exchange.status = status
        ended_s = exchange.clock()
        first_byte_s = exchange.first_byte_s
        self._metrics.request_finished(
            exchange.label or "unmatched",
            status,
            exchange.principal.name if exchange.principal is not None else "",
            ended_s - exchange.started_s,
            first_byte_s - exchange.started_s if first_byte_s is not None else None,
        )
        if exchange.label not in _QUIET:
            self._log.write(exchange.log_line(ended_s))

    def _make_routes(self) -> Routes:
        exact: dict[tuple[str, str], Route] = {}

        def api(path: str, served: Api) -> None:
            exact["POST", path] = self._api_route(served)

        api("/v1/chat/completions", apis.CHAT_API)
        api("/v1/completions", apis.COMPLETIONS_API)
        api("/v1/embeddings", apis.EMBEDDINGS_API)
        api("/v1/messages", apis.MESSAGES_API)
        api("/v1/messages/count_tokens", apis.COUNT_TOKENS_API)
        for base in ("/v1", "/backend-api/codex"):
            api(f"{base}/responses", apis.RESPONSES_API)
            api(f"{base}/responses/compact", apis.COMPACT_API)
            exact["GET", f"{base}/responses"] = Route("GET /v1/responses", self._upgrade)
        exact["GET", "/v1/models"] = Route("GET /v1/models", self._list_models)
        exact["GET", "/v1beta/models"] = Route(
            "GET /v1beta/models", partial(self._list_models, shape=models.Shape.GEMINI)
        )
        exact["GET", "/"] = Route("GET /", self._root)
        exact["GET", "/healthz"] = exact["HEAD", "/healthz"] = Route("GET /healthz", self._healthz)
        exact["GET", "/readyz"] = Route("GET /readyz", self._readyz)
        exact["GET", "/metrics"] = Route("GET /metrics", self._show_metrics)
        gemini = self._api_route(apis.GEMINI_API)
        prefixes = (
            ("POST", "/v1beta/models/", gemini),
            # Google's SDK has moved to v1, where it shares the paths of the model lists with the others.
            ("POST", "/v1/models/", gemini),
            ("GET", "/v1/models/", Route("GET /v1/models/{id}", self._one_model)),
            (
                "GET",
                "/v1beta/models/",
                Route("GET /v1beta/models/{id}", partial(self._one_model, shape=models.Shape.GEMINI)),
            ),
        )
        return Routes(exact, prefixes)

    def _api_route(self, api: Api) -> Route:
        return Route(api.label, partial(self._serve_api, api=api))


_FAMILY_OF_LIST: Final[Mapping[models.Shape, Family]] = {
    models.Shape.CLAUDE: Family.CLAUDE,
    models.Shape.GEMINI: Family.GEMINI,
}
_QUIET = frozenset({"GET /healthz", "GET /readyz", "GET /metrics"})
"""Asked every few seconds by machines; not logged."""

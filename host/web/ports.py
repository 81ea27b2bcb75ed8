"""What the web layer needs from the rest of the host."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeAlias

from aiohttp import web

from host.pipeline.request import ClientRequest, ClientResponse, ClientStream, Principal
from pluginabi.immutable import Headers


class GatewayPort(Protocol):
    """`host.pipeline.execute.Gateway`. Both calls raise PluginError, PluginTransportError or RequestError."""

    @property
    def state(self) -> Any:
        """The current `GatewayState`: its `listing()` are the models that are shown."""

    async def execute(self, request: ClientRequest) -> ClientResponse: ...

    async def execute_stream(self, request: ClientRequest) -> ClientStream | ClientResponse: ...


class AccessPort(Protocol):
    """`host.pipeline.access.Access`."""

    async def authenticate(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        headers: Headers,
        query: Headers,
        client_address: str,
        read_body: Callable[[], Awaitable[bytes]],
        times_s: dict[str, float] | None,
    ) -> Principal:
        """Who the client is. Raises an exception whose `body` is the error object when it may not come in."""


class HealthSource(Protocol):
    """Whether the host can serve."""

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Ready or not, and what `/readyz` shows."""


class RequestMetrics(Protocol):
    """What the web layer reports about each request; `host.observe.metrics.Metrics`."""

    def request_started(self) -> None: ...

    def request_finished(
        self, endpoint: str, status: int, caller: str, seconds: float, first_byte_seconds: float | None
    ) -> None: ...

    async def render(self, accept: str) -> tuple[str, bytes]:
        """Content type and body of `/metrics`."""


ManagementHandler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]
"""Answers what lies below `/v0/`; None when there is nothing."""

"""The HTTP server of the proxy, ready to be run by `aiohttp.web.ServerRunner`."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from host.config.model import Config
from host.tasks import TaskGroup
from host.web.ports import AccessPort, GatewayPort, HealthSource, ManagementHandler, RequestMetrics
from host.web.server import Frontend

MAX_HEADER_BYTES: Final = 64 * 1024
"""Of one header line, and of the request line: clients send turn metadata in headers and long queries."""
MAX_HEADERS: Final = 256
KEEP_ALIVE_S: Final = 75.0
READ_BUFFER_BYTES: Final = 256 * 1024
CLOSE_S: Final = 1.0
"""How long aiohttp waits for its connections once no request runs any more."""


class WebServer(web.Server):
    """aiohttp's low-level server plus the tasks that the web layer owns."""

    def __init__(self, frontend: Frontend) -> None:
        super().__init__(
            frontend.handle,
            # Without it a client that hangs up is noticed at the next write only.
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=KEEP_ALIVE_S,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            read_bufsize=READ_BUFFER_BYTES,
        )
        self._frontend = frontend

    def pre_shutdown(self) -> None:
        """Serve no further request on any connection; idle ones are closed at once.

        aiohttp only stops listening to them, so a client that keeps a connection would wait for an answer until the
        last running request of somebody else has ended.
        """
        idle = [connection for connection in self.connections if connection._current_request is None]
        super().pre_shutdown()
        for connection in idle:
            if connection.transport is not None:
                connection.transport.close()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let running requests finish for `timeout` seconds, end the others properly, then close every connection."""
        await self._frontend.stop(timeout or 0.0)
        await super().shutdown(CLOSE_S)


def make_app(
    gateway: GatewayPort,
    access: AccessPort,
    *,
    state: Callable[[], Config],
    health: HealthSource,
    metrics: RequestMetrics,
    management: ManagementHandler | None = None,
) -> WebServer:
    """The server for `aiohttp.web.ServerRunner`. Call it inside the event loop."""
    frontend = Frontend(
        gateway,
        access,
        state=state,
        health=health,
        metrics=metrics,
        tasks=TaskGroup("web"),
        management=management,
    )
    return WebServer(frontend)

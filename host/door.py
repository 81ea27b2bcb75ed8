"""Authentication while the proxy comes up."""

import asyncio
from collections.abc import Awaitable, Callable

from host.pipeline.access import Access, denied
from host.pipeline.request import Principal
from pluginabi.immutable import Headers


class Door:
    """Authentication as web asks for it; a request that comes before the first configuration is applied waits here."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._is_open = False
        self._decided = asyncio.Event()

    def open(self) -> None:
        """The first configuration is in force. What comes from now on comes in, while the proxy stops too: the listener
        decides how long there is anything to come."""
        self._is_open = True
        self._decided.set()

    def close(self) -> None:
        """It stops. Whoever still waits is told so, for there will be no configuration any more."""
        self._decided.set()

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
        """Who the client is. Raises AccessDenied."""
        if not self._is_open:
            await self._decided.wait()
            if not self._is_open:
                raise denied(503, "shutdown", "the server is stopping", retry_after_ms=1000)
        return await self._access.authenticate(
            request_id=request_id,
            method=method,
            path=path,
            headers=headers,
            query=query,
            client_address=client_address,
            read_body=read_body,
            times_s=times_s,
        )

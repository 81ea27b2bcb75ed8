"""Authentication while the proxy comes up."""

import asyncio
from collections.abc import Awaitable, Callable

from host.pipeline.access import Access
from host.pipeline.request import Principal
from pluginabi.immutable import Headers


class Door:
    """Authentication as web asks for it; a request that comes before the first configuration is applied waits here."""

    def __init__(self, access: Access, ready: asyncio.Event) -> None:
        self._access = access
        self._ready = ready

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
        if not self._ready.is_set():
            await self._ready.wait()
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

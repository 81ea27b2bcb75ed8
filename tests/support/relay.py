"""Something between a client and a server that loses what it should carry."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Link:
    """One connection through a relay."""

    subscribes: bool = False
    carries: asyncio.Event = field(default_factory=asyncio.Event)
    """Unset: nothing goes either way, and nobody is told."""


class Relay:
    """Carries bytes to a port of this machine."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self.links: list[Link] = []
        self.holds_subscriptions = False
        """Whether what asks for a subscription is kept back from now on."""
        self.subscribing = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link()
        link.carries.set()
        self.links.append(link)
        ahead, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._carry(link, reader, back, asks=True)
        self._carry(link, ahead, writer, asks=False)

    def _carry(self, link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asks: bool) -> None:
        task = asyncio.create_task(self._copy(link, source, target, asks=asks))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _copy(
        self, link: Link, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asks: bool
    ) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65_536):
                    if asks and b"SUBSCRIBE" in data:
                        link.subscribes = True
                        self.subscribing.set()
                        if self.holds_subscriptions:
                            link.carries.clear()
                    await link.carries.wait()
                    target.write(data)
                    await target.drain()
        finally:
            target.close()

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def relay_to(port: int) -> AsyncIterator[Relay]:
    relay = Relay(port)
    server = await asyncio.start_server(relay.handle, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    try:
        yield relay
    finally:
        server.close()
        await relay.stop()

"""The life of a plugin process: shake hands, serve until the host has had enough, end in order."""

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from pluginabi.channel import FrameChannel
from pluginabi.codec import BrokenFrame
from pluginabi.errors import PluginError
from pluginabi.frames import Frame, Hello
from pluginabi.handshake import Greeting, HandshakeError, plugin_handshake
from pluginabi.payloads.lifecycle import ShutdownRequest
from pluginabi.session import Session
from pluginabi.stream_channel import open_pipes
from pluginapi.claim_stdio import WireEnds
from pluginapi.context import Context
from pluginapi.dispatch import Dispatcher, author_traceback
from pluginapi.endpoint import Connection, Endpoint
from pluginapi.hello import hello_of
from pluginapi.identity import Identity
from pluginapi.lifeline import Lifeline
from pluginapi.plugin import Plugin
from pluginapi.service import PluginService

R = TypeVar("R")
EXIT_OK: Final = 0
EXIT_NO_HANDSHAKE: Final = 76
ORDERLY_END_S: Final = 1.9
"""The host waits 2 s before it kills: what has not ended by then would not get further."""
RECONNECT_PATIENCE_S: Final = 0.5
"""A debugging host that comes back may arrive before the end of its last session was noticed."""
SHUTDOWN_HOOK_S: Final = 1.0
"""For `plugin_shutdown` when the process ends without having been asked by the host."""


class CannotServe(Exception):
    """The descriptors are no pipes, or the socket cannot be bound."""


class PluginProcess:
    """Serves one plugin over one carrier. Made on the event loop that serves."""

    def __init__(self, plugin_class: type[Plugin], identity: Identity) -> None:
        """Makes the plugin's instance. Raises whatever its constructor raises."""
        self._identity: Final = identity
        self._hello: Final = hello_of(plugin_class, identity)
        self._dispatcher: Final = Dispatcher(plugin_class(), on_exception=self._report)
        self._stopping: Final = asyncio.Event()
        self._shut_down = False

    async def serve_stdio(self, wire: WireEnds) -> int:
        """Serve the host at the other end of the pipes, over them or over the socket its hello names.

        Returns the exit code when stdin ends, the session ends or a signal asks for it. Raises CannotServe.
        """
        try:
            control = await open_pipes(wire.read_fd, wire.write_fd, max_frame_bytes=self._hello.limits.max_frame_bytes)
        except (OSError, ValueError) as error:
            raise CannotServe(f"stdin and stdout are not a host's pipes: {error}") from error
        endpoint: Endpoint | None = None

        async def bind(host: Hello) -> None:
            nonlocal endpoint
            if host.endpoint is not None:
                endpoint = await self._bind(host.endpoint, host.token or "")

        try:
            greeting = await self._unless_stopped(plugin_handshake(control, self._hello, before_answer=bind))
            if greeting is None:
                return EXIT_OK
            if endpoint is None:
                await self._serve(control, greeting)
            else:
                await self._serve_socket(control, endpoint)
        except HandshakeError as error:
            print(f"{self._identity.plugin_id}: {error.cause}", file=sys.stderr)
            return EXIT_NO_HANDSHAKE
        finally:
            control.close()
            await self._end()
        return EXIT_OK

    async def serve_listen(self, path: str) -> int:
        """Serve hosts that connect to `path`, one after the other, until a signal asks to stop. Raises CannotServe."""
        endpoint = await self._bind(path, None, patience_s=RECONNECT_PATIENCE_S)
        print(f"{self._identity.plugin_id}: listening on unix:{path}", file=sys.stderr, flush=True)
        try:
            while (connection := await self._unless_stopped(endpoint.connection())) is not None:
                await self._serve_connection(connection)
                endpoint.release()
        finally:
            await endpoint.aclose()
            await self._end()
        return EXIT_OK

    def stop(self) -> None:
        """Begin an orderly end."""
        self._stopping.set()

    async def _bind(self, path: str, token: str | None, *, patience_s: float = 0.0) -> Endpoint:
        endpoint = Endpoint(self._hello, token=token, patience_s=patience_s)
        try:
            await endpoint.bind(path, self._identity.protocol, max_frame_bytes=self._hello.limits.max_frame_bytes)
        except (OSError, RuntimeError) as error:
            raise CannotServe(f"cannot listen at {path}: {error}") from error
        return endpoint

    async def _serve_socket(self, control: FrameChannel, endpoint: Endpoint) -> None:
        """The session is on the socket; stdin stays open as the lifeline and its end is the end."""
        control.attach(_StdinWatch(self._stopping))
        try:
            connection = await self._unless_stopped(endpoint.connection())
            if connection is not None:
                await self._serve_connection(connection)
        finally:
            await endpoint.aclose()

    async def _serve_connection(self, connection: Connection) -> None:
        await self._serve(connection.channel, connection.greeting, binary_bodies=self._identity.protocol == "grpc")

    async def _serve(self, channel: FrameChannel, greeting: Greeting, *, binary_bodies: bool = False) -> None:
        service = PluginService(self._dispatcher, plugin_id=self._identity.plugin_id, binary_bodies=binary_bodies)
        session = Session(
            channel,
            role="plugin",
            features=greeting.features,
            peer=self._identity.plugin_id,
            peer_limits=greeting.peer.limits,
            handler=service.handle,
        )
        service.attach(session)
        if await self._unless_stopped(session.run(), keep=True) is None and self._stopping.is_set():
            session.goaway("the process was asked to end", 0)
        await service.stop()
        self._shut_down = self._shut_down or service.was_shut_down
        await session.close()

    async def _unless_stopped(self, work: Coroutine[Any, Any, R], *, keep: bool = False) -> R | None:
        """What `work` returns, or None as soon as the process was asked to stop; it is cancelled then, or kept."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stopping.cancel()
            if not keep:
                task.cancel()

    async def _end(self) -> None:
        if not self._shut_down:
            self._shut_down = True
            try:
                async with asyncio.timeout(SHUTDOWN_HOOK_S):
                    await self._dispatcher.dispatch("plugin.shutdown", ShutdownRequest(reason="ended"), Context())
            except (PluginError, TimeoutError):
                # Nobody is left to be told; exceptions were printed.
                pass
        self._dispatcher.close()

    def _report(self, error: BaseException, method: str, ctx: Context) -> None:
        ctx.log.error("plugin.exception", method=method, error=type(error).__name__)
        print(author_traceback(error), file=sys.stderr, end="", flush=True)


class _StdinWatch:
    """Asks the process to stop when stdin ends; what is said there after the handshake is ignored."""

    def __init__(self, stopping: asyncio.Event) -> None:
        self._stopping = stopping

    def frame_received(self, frame: Frame, size: int) -> None: ...

    def frame_broken(self, broken: BrokenFrame) -> None: ...

    def stray_received(self, line: bytes) -> None: ...

    def channel_closed(self, cause: BaseException | None) -> None:
        self._stopping.set()


def run_process(
    plugin_class: type[Plugin],
    identity: Identity,
    *,
    wire: WireEnds | None,
    listen_path: str | None,
    lifeline: Lifeline,
) -> int:
    """Serve until the end and return the exit code: over `wire`, or at `listen_path`."""

    async def main() -> int:
        process = PluginProcess(plugin_class, identity)
        loop = asyncio.get_running_loop()

        def asked_to_end() -> None:
            lifeline.exit_within(ORDERLY_END_S)
            process.stop()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked_to_end)
        try:
            if wire is not None:
                return await process.serve_stdio(wire)
            assert listen_path is not None
            return await process.serve_listen(listen_path)
        finally:
            lifeline.exit_within(ORDERLY_END_S)

    with asyncio.Runner(loop_factory=_event_loop_factory()) as runner:
        return runner.run(main())


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, None for asyncio's own: a call over pipes costs little more than half there."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory

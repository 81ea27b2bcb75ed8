"""Channels of every carrier in pairs, sessions over them, and a bare peer that says exactly what a test wants."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pluginabi import (
    FEATURES,
    CallReply,
    FrameChannel,
    IncomingCall,
    Limits,
    PluginError,
    PluginTransportError,
    Session,
    StreamChannel,
    StreamItem,
    connect_unix,
    listen_unix,
    memory_pair,
    open_pipes,
)
from pluginabi.body import Body
from pluginabi.codec import BrokenFrame
from pluginabi.frames import Frame, Result

CARRIERS = ("memory", "pipes", "unix", "grpc")
PROFILES = {"full": frozenset(FEATURES), "minimal": frozenset[str]()}
PLUGIN_ID = "under-test"
WAIT_S = 60.0

T = TypeVar("T")
F = TypeVar("F", bound=Frame)


async def within(work: Awaitable[T]) -> T:
    """A bounded wait."""
    async with asyncio.timeout(WAIT_S):
        return await work


@asynccontextmanager
async def channels(
    carrier: str, folder: Path, *, host_accepts: int = 16 << 20, plugin_accepts: int = 16 << 20
) -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    """(host's channel, plugin's channel), joined."""
    async with CARRIER_PAIRS[carrier](folder, host_accepts, plugin_accepts) as pair:
        host, plugin = pair
        host.send_limit, plugin.send_limit = plugin_accepts, host_accepts
        try:
            yield pair
        finally:
            for channel in pair:
                channel.abort()
            for channel in pair:
                await within(channel.wait_closed())


@asynccontextmanager
async def _memory(_: Path, host_accepts: int, plugin_accepts: int) -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    yield memory_pair(max_frame_bytes=host_accepts, peer_max_frame_bytes=plugin_accepts)


@asynccontextmanager
async def _pipes(_: Path, host_accepts: int, plugin_accepts: int) -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    to_plugin, to_host = os.pipe(), os.pipe()
    host = await open_pipes(to_host[0], to_plugin[1], max_frame_bytes=host_accepts)
    plugin = await open_pipes(to_plugin[0], to_host[1], max_frame_bytes=plugin_accepts)
    yield host, plugin


@asynccontextmanager
async def _unix(
    folder: Path, host_accepts: int, plugin_accepts: int
) -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    accepted: asyncio.Future[StreamChannel] = asyncio.get_running_loop().create_future()
    path = str(folder / "s")
    server = await listen_unix(path, accepted.set_result, max_frame_bytes=plugin_accepts)
    try:
        host = await connect_unix(path, max_frame_bytes=host_accepts)
        yield host, await within(accepted)
    finally:
        server.close()


@asynccontextmanager
async def _grpc(
    folder: Path, host_accepts: int, plugin_accepts: int
) -> AsyncIterator[tuple[FrameChannel, FrameChannel]]:
    from pluginabi.grpc_channel import connect_grpc, serve_grpc

    accepted: asyncio.Future[FrameChannel] = asyncio.get_running_loop().create_future()
    path = str(folder / "s")
    listener = await serve_grpc(path, accepted.set_result, max_frame_bytes=plugin_accepts)
    try:
        host: FrameChannel = await connect_grpc(path, timeout_s=WAIT_S, max_frame_bytes=host_accepts)
        yield host, await within(accepted)
    finally:
        await listener.close()


CARRIER_PAIRS = {"memory": _memory, "pipes": _pipes, "unix": _unix, "grpc": _grpc}


class Tasks:
    """Runs handlers; everything has ended when the block ends."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def stop(self) -> None:
        for task in [*self._running]:
            task.cancel()
        if self._running:
            await asyncio.wait([*self._running], timeout=WAIT_S)


Handler = Callable[[IncomingCall], Coroutine[Any, Any, None]]


class Side:
    """One session with its handlers: a dict of method -> coroutine function, filled by the test."""

    def __init__(self, channel: FrameChannel, role: Any, features: frozenset[str], accepts: int, tasks: Tasks) -> None:
        self.methods: dict[str, Handler] = {}
        self.strays: list[bytes] = []
        self.logs: list[Any] = []
        self.goaways: asyncio.Queue[Any] = asyncio.Queue()
        self._tasks = tasks
        self.session = Session(
            channel,
            role=role,
            features=features,
            peer=PLUGIN_ID,
            peer_limits=Limits(max_frame_bytes=accepts),
            handler=self._handle,
            on_log=self.logs.append,
            on_goaway=self.goaways.put_nowait,
            on_stray=self.strays.append,
        )
        self.reader = tasks.start(self.session.run())

    def _handle(self, call: IncomingCall) -> None:
        self._tasks.start(self._answer(call))

    async def _answer(self, call: IncomingCall) -> None:
        try:
            await self.methods[call.method](call)
        except PluginError as error:
            call.fail(error.body)
        except PluginTransportError:
            assert self.session.closed  # nobody is left to hear of it


class Pair:
    """A host's and a plugin's session, joined by a carrier."""

    def __init__(self, host: Side, plugin: Side, tasks: Tasks) -> None:
        self.host, self.plugin, self.tasks = host, plugin, tasks


class BarePeer:
    """The plugin's end without a session: sends what the test says, keeps what arrives."""

    def __init__(self, channel: FrameChannel) -> None:
        self.channel = channel
        self.closed: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self._frames: asyncio.Queue[Frame] = asyncio.Queue()
        channel.attach(self)

    def send(self, frame: Frame) -> None:
        self.channel.send(frame)

    async def next(self, kind: type[F]) -> F:
        """The next frame, which must be of this kind."""
        frame = await within(self._frames.get())
        assert isinstance(frame, kind), f"expected {kind.__name__}, got {frame}"
        return frame

    def arrived(self) -> list[Frame]:
        """What arrived and was not looked at yet."""
        frames = []
        while not self._frames.empty():
            frames.append(self._frames.get_nowait())
        return frames

    def frame_received(self, frame: Frame, size: int) -> None:
        self._frames.put_nowait(frame)

    def frame_broken(self, broken: BrokenFrame) -> None:
        raise AssertionError(broken)

    def stray_received(self, line: bytes) -> None:
        raise AssertionError(line)

    def channel_closed(self, cause: BaseException | None) -> None:
        if not self.closed.done():
            self.closed.set_result(cause)


def event(number: int) -> StreamItem:
    """The n-th item of a test stream."""
    return StreamItem(body=Body.from_value({"n": number}))


def number_of(item: StreamItem) -> int:
    assert isinstance(item.body, Body)
    return int(item.body.value()["n"])


def plain(value: Any) -> Any:
    """A struct as JSON would show it, for comparing structs that hold undecoded parts."""
    return msgspec.json.decode(msgspec.json.encode(value))


def raw(reply: CallReply | Result) -> bytes:
    """The JSON of an answer that has one."""
    assert isinstance(reply.result, msgspec.Raw)
    return bytes(reply.result)


async def settled() -> None:
    """Let everything that is ready run; for showing that nothing more happens on this loop."""
    for _ in range(20):
        await asyncio.sleep(0)

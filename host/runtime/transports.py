"""From a started process to a greeted one: hello over stdio, over a Unix socket, or over gRPC."""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host import VERSION
from host.runtime.launch import LaunchSpec, Spawned
from host.runtime.teardown import finish
from host.runtime.timings import ProcessTimings
from pluginabi.channel import FrameChannel
from pluginabi.codec import BrokenFrame
from pluginabi.frames import Frame, HostInfo
from pluginabi.handshake import Greeting, HandshakeError, host_handshake
from pluginabi.stream_channel import StreamChannel, connect_unix, open_pipes

ENDPOINT_MAX_BYTES: Final = 100
"""Unix socket paths hold little more than this on every system."""
STRAY_LINES_BEFORE_HELLO: Final = 3
"""A program that prints this much instead of a hello is none of ours (F1)."""
UNIX_PREFIX: Final = "unix:"

StrayListener = Callable[[bytes], None]


@dataclass(slots=True)
class Carrier:
    """What a greeted plugin is talked to over."""

    channel: FrameChannel
    greeting: Greeting
    lifeline: StreamChannel | None = None
    """stdin and stdout; the same as `channel` over stdio, None when attached."""

    def close_stdin(self) -> None:
        """Tell the process to go: its standard input ends."""
        self.channel.close()
        if self.lifeline is not None:
            self.lifeline.close()

    def abort(self) -> None:
        """Let go of everything at once."""
        gone = ConnectionAbortedError("the process ended")
        self.channel.close(gone)
        if self.lifeline is not None:
            self.lifeline.close(gone)


def make_socket_dir(spec: LaunchSpec) -> Path | None:
    """A directory of our own, mode 0700, for a plugin that serves a socket; None for one that does not."""
    if spec.transport == "stdio" and spec.protocol == "json":
        return None
    return Path(tempfile.mkdtemp(prefix="jf-", dir=spec.runtime_dir))


def remove_socket_dir(path: Path) -> None:
    """Remove what `make_socket_dir` made."""
    shutil.rmtree(path, ignore_errors=True)


def host_info() -> HostInfo:
    """Who we are, for hellos and registrations."""
    return HostInfo(version=VERSION)


async def greet(
    spec: LaunchSpec, spawned: Spawned, socket_dir: Path | None, *, timings: ProcessTimings, on_stray: StrayListener
) -> Carrier:
    """Exchange hellos with a started process, over a socket in `socket_dir` if there is one.

    Owns the ends of stdin and stdout from now on. Raises HandshakeError (HandshakeRefused: for good) and OSError;
    nothing but the process is left then.
    """
    lifeline = await _open_stdio(spawned)
    try:
        if socket_dir is None:
            return Carrier(lifeline, await _first_hello(spec, lifeline, timings, on_stray), lifeline)
        return await _greet_over_socket(spec, lifeline, str(socket_dir / "s"), timings, on_stray)
    except BaseException as error:
        lifeline.close(error if isinstance(error, Exception) else None)
        raise


async def _open_stdio(spawned: Spawned) -> StreamChannel:
    """Not to be interrupted half-way: one of the two ends would belong to nobody."""
    opening = asyncio.ensure_future(open_pipes(spawned.stdout_fd, spawned.stdin_fd))
    try:
        return await finish(opening)
    except asyncio.CancelledError:
        opening.result().close(ConnectionAbortedError("the start was given up"))
        raise


async def attach(spec: LaunchSpec, *, timings: ProcessTimings, on_stray: StrayListener) -> Carrier:
    """Exchange hellos with a process somebody else started with `--listen`. Raises as `greet`."""
    path = spec.attach.removeprefix(UNIX_PREFIX)
    async with asyncio.timeout(timings.connect_s):
        channel = await connect_unix(path)
    try:
        _check_peer(spec, channel.peer_uid())
        greeting = await _hello(spec, channel, timings.hello_s, on_stray)
    except BaseException as error:
        channel.close(error if isinstance(error, Exception) else None)
        raise
    return Carrier(channel, greeting)


async def _first_hello(
    spec: LaunchSpec,
    channel: StreamChannel,
    timings: ProcessTimings,
    on_stray: StrayListener,
    *,
    endpoint: str | None = None,
    token: str | None = None,
) -> Greeting:
    """The hello on stdin, answered on stdout; gives up on a program that prints something else."""
    printed: list[bytes] = []

    def listen(line: bytes) -> None:
        on_stray(line)
        printed.append(line)
        if len(printed) == STRAY_LINES_BEFORE_HELLO:
            channel.close(ConnectionAbortedError("no hello"))

    try:
        return await _hello(spec, channel, timings.hello_s, listen, endpoint=endpoint, token=token)
    except HandshakeError:
        if len(printed) < STRAY_LINES_BEFORE_HELLO:
            raise
        shown = " | ".join(line.decode(errors="replace")[:200] for line in printed[:STRAY_LINES_BEFORE_HELLO])
        raise HandshakeError(spec.plugin_id, f"it prints text on stdout instead of a hello: {shown}") from None


async def _hello(
    spec: LaunchSpec,
    channel: FrameChannel,
    timeout_s: float,
    on_stray: StrayListener,
    *,
    endpoint: str | None = None,
    token: str | None = None,
) -> Greeting:
    return await host_handshake(
        channel,
        plugin_id=spec.plugin_id,
        host=host_info(),
        endpoint=endpoint,
        token=token,
        timeout_s=timeout_s,
        on_stray=on_stray,
    )


async def _greet_over_socket(
    spec: LaunchSpec, lifeline: StreamChannel, endpoint: str, timings: ProcessTimings, on_stray: StrayListener
) -> Carrier:
    if len(os.fsencode(endpoint)) > ENDPOINT_MAX_BYTES:
        raise HandshakeError(spec.plugin_id, f"the socket path {endpoint} is longer than {ENDPOINT_MAX_BYTES} bytes")
    token = secrets.token_urlsafe(32)
    await _first_hello(spec, lifeline, timings, on_stray, endpoint=endpoint, token=token)
    lifeline.attach(_StrayOnly(on_stray))
    try:
        async with asyncio.timeout(timings.connect_s):
            channel = await _dial(spec, endpoint, timings)
    except TimeoutError:
        raise HandshakeError(spec.plugin_id, f"its socket took no connection within {timings.connect_s:g} s") from None
    try:
        greeting = await _hello(spec, channel, timings.hello_s, on_stray, token=token)
    except BaseException as error:
        channel.close(error if isinstance(error, Exception) else None)
        raise
    return Carrier(channel, greeting, lifeline)


async def _dial(spec: LaunchSpec, endpoint: str, timings: ProcessTimings) -> FrameChannel:
    channel = await connect_unix(endpoint)
    try:
        _check_peer(spec, channel.peer_uid())
    except HandshakeError as error:
        channel.close(error)
        raise
    if spec.protocol == "json":
        return channel
    # The gRPC library does not show its socket: who serves there was asked with a connection of our own.
    channel.close()
    return await _dial_grpc(endpoint, timings)


async def _dial_grpc(endpoint: str, timings: ProcessTimings) -> FrameChannel:
    # Here and not above: the library is large, and most hosts run no gRPC plugin.
    from pluginabi.grpc_channel import connect_grpc

    return await connect_grpc(endpoint, timeout_s=timings.connect_s)


def _check_peer(spec: LaunchSpec, uid: int | None) -> None:
    """Only a process of our own user may be at the other end; None where the system cannot tell."""
    if uid is not None and uid != os.geteuid():
        raise HandshakeError(spec.plugin_id, f"its socket belongs to user {uid}, not to ours ({os.geteuid()})")


class _StrayOnly:
    """Takes what a plugin that serves a socket still prints on stdout: all of it is output, frames included."""

    def __init__(self, on_stray: StrayListener) -> None:
        self._on_stray = on_stray

    def frame_received(self, frame: Frame, size: int) -> None:
        self._on_stray(f"a {type(frame).__name__.lower()} frame on stdout, {size} bytes".encode())

    def frame_broken(self, broken: BrokenFrame) -> None:
        self._on_stray(f"a broken {broken.kind} frame on stdout".encode())

    def stray_received(self, line: bytes) -> None:
        self._on_stray(line)

    def channel_closed(self, cause: BaseException | None) -> None:
        pass

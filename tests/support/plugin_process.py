"""A small host for tests: starts a real plugin process, shakes hands with it and calls it."""

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pluginabi.call import IncomingCall
from pluginabi.codec import decode_result
from pluginabi.frames import HostInfo, Log, Usage
from pluginabi.handshake import Greeting, host_handshake
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginabi.session import Session
from pluginabi.stream_channel import connect_unix, open_pipes
from pluginapi.testing import FakeHost

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0


def plugin_environment(directory: Path | None = None) -> dict[str, str]:
    """What a plugin process gets: little, and the repository on its path."""
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
    if directory is not None:
        environment["JACKFIELD_PLUGIN_DIR"] = str(directory)
    return environment


@dataclass
class PluginUnderTest:
    """A running plugin process with a host's session to it."""

    process: asyncio.subprocess.Process
    channel: Any
    greeting: Greeting
    session: Session
    host: FakeHost
    stderr: "Tail"
    logs: list[Log] = field(default_factory=list)
    strays: list[bytes] = field(default_factory=list)
    stdin_fd: int = -1

    @property
    def plugin_id(self) -> str:
        return self.greeting.peer.plugin or ""

    async def call(self, method: str, params: Payload | None = None, *, timeout_ms: int | None = None) -> Any:
        """The decoded answer. Raises PluginError and PluginTransportError."""
        return (await self.reply(method, params, timeout_ms=timeout_ms))[0]

    async def reply(
        self, method: str, params: Payload | None = None, *, timeout_ms: int | None = None
    ) -> tuple[Any, Usage | None]:
        call = self.session.start_call(method, params or PLUGIN_METHODS[method].request(), timeout_ms=timeout_ms)
        async with asyncio.timeout(WAIT_S):
            reply = await call.reply()
        return decode_result(method, reply.result, plugin_id=self.plugin_id), reply.usage

    async def open_stream(self, method: str, params: Payload) -> tuple[Any, Any]:
        """The opening result and the items."""
        async with asyncio.timeout(WAIT_S):
            reply = await self.session.start_call(method, params, stream=True).reply()
        assert reply.items is not None, "no stream was opened"
        return decode_result(method, reply.result, plugin_id=self.plugin_id), reply.items

    async def exit_code(self) -> int:
        async with asyncio.timeout(WAIT_S):
            return await self.process.wait()

    def close_stdin(self) -> None:
        """End the plugin's stdin and nothing else."""
        self.channel.close()


class Tail:
    """Everything a process wrote to stderr."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self.text = ""
        self._stream = stream
        self._grown = asyncio.Condition()
        self._task = asyncio.create_task(self._read())

    async def all(self) -> str:
        """Wait for its end."""
        async with asyncio.timeout(WAIT_S):
            await self._task
        return self.text

    async def until(self, text: str) -> None:
        """Wait until `text` was written."""
        async with asyncio.timeout(WAIT_S), self._grown:
            await self._grown.wait_for(lambda: text in self.text)

    async def _read(self) -> None:
        while data := await self._stream.read(65536):
            async with self._grown:
                self.text += data.decode(errors="replace")
                self._grown.notify_all()


async def spawn(
    command: Sequence[str], *, stdin: Any, stdout: Any, env: Mapping[str, str], cwd: Path | None = None
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command, stdin=stdin, stdout=stdout, stderr=asyncio.subprocess.PIPE, env=dict(env), cwd=cwd
    )


@asynccontextmanager
async def started(
    command: Sequence[str],
    *,
    plugin_id: str,
    directory: Path | None = None,
    cwd: Path | None = None,
    host: FakeHost | None = None,
    register: RegisterRequest | None = None,
    socket_dir: Path | None = None,
    protocol: str = "json",
) -> AsyncIterator[PluginUnderTest]:
    """Start `command` over pipes, or over a socket in `socket_dir`; registered if it wants to be; killed at the end."""
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    process = await spawn(
        command, stdin=stdin_read, stdout=stdout_write, env=plugin_environment(directory), cwd=cwd or directory
    )
    os.close(stdin_read)
    os.close(stdout_write)
    assert process.stderr is not None
    tail = Tail(process.stderr)
    control = await open_pipes(stdout_read, stdin_write)
    running: list[asyncio.Task[Any]] = []
    host = host or FakeHost()
    strays: list[bytes] = []
    logs: list[Log] = []

    def on_callback(call: IncomingCall) -> None:
        task = asyncio.create_task(host.serve(call))
        running.append(task)
        call.on_cancel(lambda reason: _cancel(task))

    try:
        endpoint = str(socket_dir / "s") if socket_dir is not None else None
        token = secrets.token_hex(8) if endpoint else None
        greeting = await host_handshake(
            control, plugin_id=plugin_id, host=HostInfo(), endpoint=endpoint, token=token, on_stray=strays.append
        )
        channel = control
        if endpoint is not None:
            channel = await _dial(endpoint, protocol)
            greeting = await host_handshake(channel, plugin_id=plugin_id, host=HostInfo(), token=token)
        session = Session(
            channel,
            role="host",
            features=greeting.features,
            peer=plugin_id,
            peer_limits=greeting.peer.limits,
            handler=on_callback,
            on_log=logs.append,
            on_stray=strays.append,
            minimal=not greeting.peer.features,
        )
        running.append(asyncio.create_task(session.run()))
        plugin = PluginUnderTest(process, control, greeting, session, host, tail, logs, strays)
        if "plugin.register" in greeting.peer.capabilities:
            request = register or RegisterRequest()
            host.permissions = frozenset(request.permissions)
            await plugin.call("plugin.register", request)
        yield plugin
        await session.close()
    finally:
        control.close()
        if process.returncode is None:
            process.kill()
        async with asyncio.timeout(WAIT_S):
            await process.wait()
            await tail.all()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            await control.wait_closed()


def python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


async def _dial(endpoint: str, protocol: str) -> Any:
    if protocol == "json":
        return await connect_unix(endpoint)
    from pluginabi.grpc_channel import connect_grpc

    return await connect_grpc(endpoint, timeout_s=WAIT_S)


def _cancel(task: "asyncio.Task[Any]") -> None:
    task.cancel()

"""The two hellos that open every session. The host speaks first; the host decides.

After a handshake the channel holds back what follows until a `Session` attaches.
"""

import asyncio
import contextlib
import hmac
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from pluginabi.channel import ChannelClosed, FrameChannel
from pluginabi.codec import BrokenFrame
from pluginabi.errors import PluginTransportError
from pluginabi.frames import Frame, Hello, HostInfo
from pluginabi.limits import DEFAULT_MAX_INFLIGHT, DEFAULT_MAX_STREAMS, Limits
from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION, Chosen, Refusal, negotiate

HELLO_TIMEOUT_S: Final = 10.0
_STRAY_LINES_SHOWN: Final = 3
_STRAY_LINE_MAX_CHARS: Final = 200


class HandshakeError(PluginTransportError):
    """No session came about; phase hello."""

    def __init__(self, plugin_id: str, cause: str) -> None:
        super().__init__(plugin_id, "hello", phase="hello", cause=cause)


class HandshakeRefused(HandshakeError):
    """The two can never talk: trying again is useless until one of them is changed."""


class Greeting(Struct, frozen=True, kw_only=True):
    """What a handshake settled."""

    peer: Hello
    chosen: Chosen

    @property
    def features(self) -> frozenset[str]:
        """What both sides use; empty for a plugin of the minimal profile."""
        return self.chosen.features

    @property
    def max_inflight(self) -> int:
        """Calls until `result` that the peer wants at once."""
        if self.peer.limits.max_inflight is not None:
            return max(1, self.peer.limits.max_inflight)
        return DEFAULT_MAX_INFLIGHT if self.features else 1

    @property
    def max_streams(self) -> int:
        """Open streams that the peer wants at once."""
        if self.peer.limits.max_streams is not None:
            return max(1, self.peer.limits.max_streams)
        return DEFAULT_MAX_STREAMS


async def host_handshake(
    channel: FrameChannel,
    *,
    plugin_id: str,
    host: HostInfo,
    limits: Limits | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    timeout_s: float = HELLO_TIMEOUT_S,
    on_stray: Callable[[bytes], None] | None = None,
) -> Greeting:
    """Send the host's hello and judge the plugin's.

    `endpoint` and `token` make the plugin listen on a socket; the handshake is then repeated there with the token.
    Raises HandshakeError (no hello in time, closed, nonsense) and HandshakeRefused (no common version, wrong id).
    """
    # A plugin that ended already is told of like any other that does: with what it printed, by the one who waits.
    with contextlib.suppress(ChannelClosed):
        channel.send(host_hello(host, limits or Limits(), endpoint, token))
    hello = await _await_hello(channel, plugin_id, timeout_s, on_stray)
    return judge(hello, plugin_id=plugin_id)


async def plugin_handshake(
    channel: FrameChannel,
    hello: Hello,
    *,
    token: str | None = None,
    timeout_s: float | None = None,
    before_answer: Callable[[Hello], Awaitable[None]] | None = None,
) -> Greeting:
    """Wait for the host's hello and answer with the plugin's.

    With `token`, the first hello must carry it: otherwise HandshakeError and nothing is answered; close the channel.
    `before_answer` gets the host's hello: the place to bind its `endpoint`, which must exist when the host dials.
    """
    plugin_id = hello.plugin or ""
    host = await _await_hello(channel, plugin_id, timeout_s, None)
    if token is not None and not hmac.compare_digest((host.token or "").encode(), token.encode()):
        raise HandshakeError(plugin_id, "the host's hello has the wrong token")
    if before_answer is not None:
        await before_answer(host)
    channel.send(hello)
    abi = max(set(host.abi) & set(hello.abi), default=max(ABI_VERSIONS))
    return Greeting(peer=host, chosen=Chosen(abi, frozenset(host.features) & frozenset(hello.features)))


def host_hello(host: HostInfo, limits: Limits, endpoint: str | None = None, token: str | None = None) -> Hello:
    """The host's hello."""
    return Hello(
        abi=ABI_VERSIONS,
        schema=SCHEMA_VERSION,
        features=FEATURES,
        limits=limits,
        host=host,
        endpoint=endpoint,
        token=token,
    )


def plugin_hello(
    plugin_id: str, version: str, capabilities: tuple[str, ...], *, features: tuple[str, ...] = FEATURES
) -> Hello:
    """A plugin's hello with the versions of this library; add `inputs` and `limits` with `msgspec.structs.replace`."""
    return Hello(
        abi=ABI_VERSIONS,
        schema=SCHEMA_VERSION,
        plugin=plugin_id,
        version=version,
        features=features,
        capabilities=capabilities,
    )


def judge(hello: Hello, *, plugin_id: str) -> Greeting:
    """The host's verdict on a plugin's hello. Raises HandshakeRefused."""
    if not hello.plugin:
        raise HandshakeRefused(plugin_id, "its hello names no plugin: the member `plugin` is required")
    if hello.plugin != plugin_id:
        raise HandshakeRefused(plugin_id, f"its hello says it is {hello.plugin!r}, the manifest says {plugin_id!r}")
    if not hello.capabilities:
        raise HandshakeRefused(plugin_id, "its hello lists no capabilities: nothing of it would ever be called")
    verdict = negotiate(
        plugin=plugin_id, plugin_abi=hello.abi, plugin_schema=hello.schema, plugin_features=hello.features
    )
    if isinstance(verdict, Refusal):
        raise HandshakeRefused(plugin_id, verdict.message)
    # Endpoint and token are the host's words; a plugin that echoes them must not mislead anybody.
    return Greeting(peer=replace(hello, endpoint=None, token=None), chosen=verdict)


class _HelloWaiter:
    """Takes the first frame off a channel and leaves the rest to the session."""

    def __init__(self, channel: FrameChannel, on_stray: Callable[[bytes], None] | None) -> None:
        self.answer: asyncio.Future[Hello | str] = asyncio.get_running_loop().create_future()
        self.strays: deque[str] = deque(maxlen=_STRAY_LINES_SHOWN)
        self._channel = channel
        self._on_stray = on_stray

    def frame_received(self, frame: Frame, size: int) -> None:
        self._channel.detach()
        self._settle(frame if isinstance(frame, Hello) else f"a {type(frame).__name__.lower()} frame before its hello")

    def frame_broken(self, broken: BrokenFrame) -> None:
        self._channel.detach()
        self._settle(f"an unusable {broken.kind} frame instead of a hello: {broken.reason}")

    def stray_received(self, line: bytes) -> None:
        self.strays.append(line.decode(errors="replace")[:_STRAY_LINE_MAX_CHARS])
        if self._on_stray is not None:
            self._on_stray(line)

    def channel_closed(self, cause: BaseException | None) -> None:
        self._settle("it ended before its hello")

    def _settle(self, answer: Hello | str) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)


async def _await_hello(
    channel: FrameChannel, plugin_id: str, timeout_s: float | None, on_stray: Callable[[bytes], None] | None
) -> Hello:
    waiter = _HelloWaiter(channel, on_stray)
    channel.attach(waiter)
    try:
        async with asyncio.timeout(timeout_s):
            answer = await waiter.answer
    except TimeoutError:
        answer = f"no hello within {timeout_s:g} s"
    finally:
        channel.detach()
    if isinstance(answer, Hello):
        return answer
    printed = f"; it printed: {' | '.join(waiter.strays)}" if waiter.strays else ""
    raise HandshakeError(plugin_id, answer + printed)

"""A channel with a name: sending with faults told as `PluginTransportError`, and the one way a session breaks."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from pluginabi.channel import ChannelClosed, ChannelFull, FrameChannel
from pluginabi.codec import FrameTooLarge, check_body_size
from pluginabi.errors import Phase, PluginTransportError
from pluginabi.frames import Credit, Frame, Item, Pong
from pluginabi.payloads.common import Payload

CHANNEL_FAULTS: Final = (FrameTooLarge, ChannelFull, ChannelClosed)


class ProtocolError(Exception):
    """The peer broke a rule after which nothing it says can be trusted; the session is closed."""


class Link:
    """What the two call tables of a session share."""

    def __init__(
        self, channel: FrameChannel, *, peer: str, features: frozenset[str], on_broken: Callable[[ProtocolError], None]
    ) -> None:
        self.loop: Final = asyncio.get_running_loop()
        self.channel: Final = channel
        self.peer: Final = peer
        self.features: Final = features
        self.ended: str | None = None
        """Why the session ended."""
        self._on_broken = on_broken

    def check_open(self, method: str) -> None:
        """Raise PluginTransportError when the session ended."""
        if self.ended is not None:
            raise self.error(method, "unavailable", self.ended)

    def error(self, method: str, phase: Phase, cause: str) -> PluginTransportError:
        """A fault of this peer."""
        return PluginTransportError(self.peer, method, phase=phase, cause=cause)

    def broken(self, what: str) -> None:
        """The peer broke a rule: close the session."""
        self._on_broken(ProtocolError(what))

    def send(
        self, frame: Frame, method: str, payload: Any = None, *, control: bool = False, closing: bool = False
    ) -> int:
        """Send `frame`, which carries `payload`; returns its size in credit. Raises PluginTransportError."""
        if isinstance(payload, (Payload, Item)):
            self.check_body_size(payload, method)
        try:
            return self.channel.send(frame, control=control, closing=closing)
        except CHANNEL_FAULTS as fault:
            raise self.told(fault, method) from None

    def check_body_size(self, payload: Payload | Item, method: str) -> None:
        """Raise PluginTransportError when a body is more than the peer accepts."""
        try:
            check_body_size(payload, self.channel.send_limit)
        except FrameTooLarge as fault:
            raise self.told(fault, method) from None

    def told(self, fault: Exception, method: str) -> PluginTransportError:
        """A fault of the channel as a fault of the peer."""
        if isinstance(fault, FrameTooLarge):
            return self.error(method, "body_size", str(fault))
        if isinstance(fault, ChannelFull):
            return self.error(method, "overload", str(fault))
        return self.error(method, "unavailable", self.ended or str(fault))

    def send_quietly(self, frame: Frame, *, control: bool = False) -> None:
        """Send a frame nobody waits for. A peer that takes no more of them is not reading at all."""
        try:
            self.channel.send(frame, control=control, closing=not control)
        except ChannelFull as error:
            self.broken(str(error))
        except ChannelClosed:
            pass

    def send_control(self, frame: Credit | Pong) -> None:
        """Send a frame that overtakes what waits."""
        self.send_quietly(frame, control=True)

    @property
    def writable(self) -> bool:
        return self.channel.writable

    async def drained(self, method: str) -> None:
        """Wait until the peer keeps up. Raises PluginTransportError when the session ends."""
        try:
            await self.channel.drain()
        except ChannelClosed as error:
            raise self.error(method, "exit", self.ended or str(error)) from None

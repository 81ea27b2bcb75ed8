"""Hellos to a peer that is gone already."""

import asyncio
import os

import pytest

from pluginabi.frames import HostInfo
from pluginabi.handshake import HandshakeError, host_handshake
from pluginabi.stream_channel import open_pipes


class Ended:
    def __init__(self):
        self.told = asyncio.Event()

    def frame_received(self, frame, size): ...

    def frame_broken(self, broken): ...

    def stray_received(self, line): ...

    def channel_closed(self, cause):
        self.told.set()


async def ended_peer(printed):
    """The host's ends of the pipes of a process that printed something and is gone."""
    stdout, its_stdout = os.pipe()
    its_stdin, stdin = os.pipe()
    os.write(its_stdout, printed)
    os.close(its_stdout)
    os.close(its_stdin)
    return await open_pipes(stdout, stdin)


async def test_a_hello_to_a_peer_whose_end_was_noticed_already_is_a_failed_handshake():
    async with asyncio.timeout(20):
        channel = await ended_peer(b"")
        ended = Ended()
        channel.attach(ended)
        await ended.told.wait()
        channel.detach()
        with pytest.raises(HandshakeError, match="it ended before its hello"):
            await host_handshake(channel, plugin_id="gone", host=HostInfo(version="1"))


async def test_the_last_words_of_a_peer_that_reads_no_more_are_part_of_the_reason():
    async with asyncio.timeout(20):
        channel = await ended_peer(b"no such file\n")
        with pytest.raises(HandshakeError, match="ended before its hello; it printed: no such file"):
            await host_handshake(channel, plugin_id="gone", host=HostInfo(version="1"))

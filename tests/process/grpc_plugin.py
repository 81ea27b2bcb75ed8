"""A plugin that serves gRPC, written with the contract's own channel: the least there is to it."""

import asyncio
import os
import sys

from pluginabi.call import IncomingCall
from pluginabi.codec import decode_params
from pluginabi.grpc_channel import GrpcChannel, serve_grpc
from pluginabi.handshake import plugin_handshake, plugin_hello
from pluginabi.payloads.routing import ModelRouteResponse
from pluginabi.session import Session
from pluginabi.stream_channel import open_pipes


async def main() -> None:
    lifeline = await open_pipes(os.dup(0), os.dup(1))
    hello = plugin_hello("faulty", "1.0.0", ("model.route",))
    ended = asyncio.Event()
    tasks = set()

    def serve(channel: GrpcChannel) -> None:
        tasks.add(asyncio.ensure_future(session(channel)))

    async def session(channel: GrpcChannel) -> None:
        greeting = await plugin_handshake(channel, hello, token=token)
        await Session(
            channel,
            role="plugin",
            features=greeting.features,
            peer="faulty",
            peer_limits=greeting.peer.limits,
            handler=answer,
        ).run()
        ended.set()

    def answer(call: IncomingCall) -> None:
        if call.method == "plugin.register":
            call.respond(b"{}")
            return
        params = decode_params(call.method, call.params)
        if params.requested_model == "exit":
            os._exit(4)
        call.respond(ModelRouteResponse(reason=params.requested_model))

    class Bootstrap:
        """Takes the host's first hello off stdin."""

        def __init__(self) -> None:
            self.hello = asyncio.get_running_loop().create_future()

        def frame_received(self, frame, size):
            self.hello.set_result(frame)

        def frame_broken(self, broken):
            pass

        def stray_received(self, line):
            pass

        def channel_closed(self, cause):
            ended.set()

    bootstrap = Bootstrap()
    lifeline.attach(bootstrap)
    first = await bootstrap.hello
    token = first.token
    listener = await serve_grpc(first.endpoint, serve)
    lifeline.send(hello)
    await ended.wait()
    await listener.close()


asyncio.run(main())
sys.exit(0)

"""What is particular to the gRPC carrier: one session, the health service, no limit but ours."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pluginabi import Body, FrameChannel, IncomingCall, PluginTransportError
from pluginabi.codec import decode_params, decode_result
from pluginabi.frames import Ping
from pluginabi.grpc_channel import SERVICE, connect_grpc, serve_grpc
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from tests.support.wire import PLUGIN_ID, PROFILES, BarePeer, Pair, Side, Tasks, within

pytestmark = pytest.mark.parametrize("carrier", ["grpc"], indirect=True)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_the_health_service_says_serving(carrier: str, folder: Path, service: str) -> None:
    listener = await serve_grpc(str(folder / "s"), lambda _: None)
    async with grpc.aio.insecure_channel(f"unix:{folder / 's'}") as connection:
        stub: Any = health_pb2_grpc.HealthStub(connection)
        answer = await within(stub.Check(health_pb2.HealthCheckRequest(service=service)))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await listener.close()


async def test_a_second_session_beside_a_running_one_is_refused_and_one_after_it_served(
    carrier: str, folder: Path
) -> None:
    accepted: asyncio.Queue[FrameChannel] = asyncio.Queue()
    path = str(folder / "s")
    listener = await serve_grpc(path, accepted.put_nowait)
    first = BarePeer(await connect_grpc(path, timeout_s=60))
    serving = BarePeer(await within(accepted.get()))
    second = BarePeer(await connect_grpc(path, timeout_s=60))
    assert isinstance(await within(second.closed), ConnectionError)
    first.send(Ping(id=1))
    assert (await serving.next(Ping)).id == 1
    first.channel.close()
    await within(serving.closed)
    await within(first.channel.wait_closed())
    third = BarePeer(await connect_grpc(path, timeout_s=60))
    third.send(Ping(id=2))
    served_again = BarePeer(await within(accepted.get()))
    assert (await served_again.next(Ping)).id == 2
    for peer in (second, third):
        peer.channel.abort()
        await within(peer.channel.wait_closed())
    await listener.close()


async def test_dialling_where_nobody_serves_fails_in_time(carrier: str, folder: Path) -> None:
    with pytest.raises(ConnectionError, match="nobody serves gRPC"):
        await within(connect_grpc(str(folder / "nobody"), timeout_s=0.05))


async def test_a_body_above_the_librarys_own_limit_passes(full_pair: Pair) -> None:
    async def execute(call: IncomingCall) -> None:
        request = decode_params(call.method, call.params)
        call.respond(ExecutorResponse(body=request.body))

    full_pair.plugin.methods["executor.execute"] = execute
    body = Body(text="x" * 10_000_000)
    reply = await within(full_pair.host.session.start_call("executor.execute", ExecutorRequest(body=body)).reply())
    assert decode_result("executor.execute", reply.result, plugin_id=PLUGIN_ID).body == body


async def test_closing_the_listener_ends_a_running_session(carrier: str, folder: Path) -> None:
    accepted: asyncio.Future[FrameChannel] = asyncio.get_running_loop().create_future()
    path = str(folder / "s")
    listener = await serve_grpc(path, accepted.set_result)
    tasks = Tasks()
    host = Side(await connect_grpc(path, timeout_s=60), "host", PROFILES["full"], 1 << 20, tasks)
    await within(accepted)
    call = host.session.start_call("model.route", b"{}")
    await within(listener.close())
    with pytest.raises(PluginTransportError):
        await within(call.reply())
    await within(host.reader)
    await within(host.session.close())
    await tasks.stop()

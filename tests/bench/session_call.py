"""One 1 KB call through a Session against a bare newline-JSON echo, both over pipes between two Python processes.

    python tests/bench/session_call.py [--loop asyncio|uvloop] [--calls 4000] [--task]

Blocks of both kinds alternate, so that a noisy machine is unfair to both. Prints p50, p99 and the ratio of the p50s;
the aim is 1.2, the limit 1.5. With `--task` both children answer from a task instead of from the reader; with `--typed`
the session's side also builds, encodes and decodes the structs of `executor.execute`, which the bare echo does not.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from pluginabi import Session, host_handshake, open_pipes, plugin_handshake, plugin_hello  # noqa: E402
from pluginabi.body import Body  # noqa: E402
from pluginabi.frames import HostInfo  # noqa: E402
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse  # noqa: E402

BLOCK = 250
ALL_CORES = os.sched_getaffinity(0)


class Request(msgspec.Struct):
    id: int
    method: str
    params: msgspec.Raw


class Answer(msgspec.Struct):
    id: int
    result: msgspec.Raw


class Lines(asyncio.Protocol):
    def __init__(self, on_line):
        self.on_line, self.rest, self.lost = on_line, b"", asyncio.get_running_loop().create_future()

    def data_received(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.on_line(line)

    def connection_lost(self, exc):
        self.lost.done() or self.lost.set_result(None)


async def open_writer(fd):
    loop = asyncio.get_running_loop()
    return (await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, os.fdopen(fd, "wb", 0)))[0]


async def open_reader(fd, on_line):
    loop = asyncio.get_running_loop()
    return (await loop.connect_read_pipe(lambda: Lines(on_line), os.fdopen(fd, "rb", 0)))[1]


class Tasks:
    def __init__(self):
        self.running = set()

    def start(self, work):
        task = asyncio.get_running_loop().create_task(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)


async def bare_child(in_task, _):
    decode, encode = msgspec.json.Decoder(Request).decode, msgspec.json.Encoder().encode
    tasks = Tasks()

    def answer(request):
        writer.write(encode(Answer(request.id, request.params)) + b"\n")

    async def later(request):
        answer(request)

    def on_line(line):
        if in_task:
            tasks.start(later(decode(line)))
        else:
            answer(decode(line))

    writer = await open_writer(1)
    await (await open_reader(0, on_line)).lost


async def session_child(in_task, typed):
    channel = await open_pipes(0, 1)
    greeting = await plugin_handshake(channel, plugin_hello("bench", "1", ("executor.execute",)))
    decoder, tasks = msgspec.json.Decoder(ExecutorRequest), Tasks()

    def answer(call):
        if typed:
            call.respond(ExecutorResponse(body=decoder.decode(call.params).body))
        else:
            call.respond(bytes(call.params))

    async def later(call):
        answer(call)

    def handler(call):
        if in_task:
            tasks.start(later(call))
        else:
            answer(call)

    session = Session(
        channel,
        role="plugin",
        features=greeting.features,
        peer="bench",
        peer_limits=greeting.peer.limits,
        handler=handler,
    )
    await session.run()


def spawn(kind, args):
    child_in, to_child = os.pipe()
    from_child, child_out = os.pipe()
    command = [sys.executable, __file__, "--child", kind, "--loop", args.loop] + [
        flag for flag, on in (("--task", args.task), ("--typed", args.typed)) if on
    ]
    process = subprocess.Popen(command, stdin=child_in, stdout=child_out)
    os.sched_setaffinity(process.pid, ALL_CORES - os.sched_getaffinity(0) or ALL_CORES)
    os.close(child_in)
    os.close(child_out)
    return process, from_child, to_child


async def bare_caller(args, body):
    process, read_fd, write_fd = spawn("bare", args)
    decode, encode = msgspec.json.Decoder(Answer).decode, msgspec.json.Encoder().encode
    waiting, last = {}, 0

    def on_line(line):
        answer = decode(line)
        waiting.pop(answer.id).set_result(answer)

    writer = await open_writer(write_fd)
    await open_reader(read_fd, on_line)

    async def call():
        nonlocal last
        last += 1
        future = waiting[last] = asyncio.get_running_loop().create_future()
        writer.write(encode(Request(last, "executor.execute", msgspec.Raw(body))) + b"\n")
        return await future

    async def close():
        writer.close()
        await asyncio.to_thread(process.wait, 5)

    return call, close


async def session_caller(args, body):
    process, read_fd, write_fd = spawn("session", args)
    channel = await open_pipes(read_fd, write_fd)
    greeting = await host_handshake(channel, plugin_id="bench", host=HostInfo())
    session = Session(channel, role="host", features=greeting.features, peer="bench", peer_limits=greeting.peer.limits)
    reader = asyncio.create_task(session.run())
    params = ExecutorRequest(request_id="req-1", model="m", format="openai", body=Body(json=msgspec.Raw(body)))
    if not args.typed:
        params = body

    async def call():
        return await session.start_call("executor.execute", params, timeout_ms=30_000).reply()

    async def close():
        await session.close()
        await reader
        await asyncio.to_thread(process.wait, 5)

    return call, close


async def measure(call, count):
    took = []
    clock = time.perf_counter_ns
    for _ in range(count):
        start = clock()
        await call()
        took.append(clock() - start)
    return took


async def compare(args):
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x " * 460}]}).encode()
    callers = {"bare": await bare_caller(args, body), "session": await session_caller(args, body)}
    took = {"bare": [], "session": []}
    for block in range(args.calls // BLOCK + 2):
        for kind, (call, _) in callers.items():
            block_took = await measure(call, BLOCK)
            if block >= 2:
                took[kind] += block_took
    for _, close in callers.values():
        await close()
    p50 = {}
    for kind, times in took.items():
        times.sort()
        p50[kind] = times[len(times) // 2]
        print(f"{kind:8} p50 {p50[kind] / 1e3:7.1f} us   p99 {times[len(times) * 99 // 100] / 1e3:7.1f} us")
    print(f"ratio    {p50['session'] / p50['bare']:.2f}   body {len(body)} bytes, loop {args.loop}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--task", action="store_true")
    parser.add_argument("--typed", action="store_true")
    parser.add_argument("--child", choices=("bare", "session"))
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0)) if not args.child else []
    if len(cores) > 1:
        # Caller and child on a core each: otherwise the ratio says where the scheduler happened to put them.
        os.sched_setaffinity(0, {cores[0]})
    if args.child:
        work = (bare_child if args.child == "bare" else session_child)(args.task, args.typed)
    else:
        work = compare(args)
    if args.loop == "uvloop":
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()

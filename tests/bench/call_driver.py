"""One side of the plugin-call comparison, in a process of its own: drives a child and prints one JSON line.

    call_driver.py echo|plugin SECONDS [CHILD_PREFIX ...]

`echo` writes one JSON line to contestants/echo_child.py and waits for it to come back, with asyncio's own streams;
`plugin` makes one `model.route` call through pluginabi's Session and pipe channel to plugins/bench-json-router, which
is built with pluginapi, and decodes its answer. Both calls carry the same 1 KB of parameters, one after the other, on
uvloop. CHILD_PREFIX is a command that starts the child, on a core of its own perhaps; without it the child inherits
this process's core.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import uvloop

from pluginabi import HostInfo, Session, host_handshake, open_pipes
from pluginabi.codec import decode_result
from pluginabi.payloads.routing import ModelRouteRequest

HERE: Final = Path(__file__).resolve().parent
WARM_UP_CALLS: Final = 300

# What a gateway tells a router about a chat request from an SDK: about 1 KB as JSON.
PARAMS: Final[dict[str, Any]] = {
    "request_id": "req-0123456789abcdef0123456789abcdef",
    "source_format": "openai",
    "requested_model": "bench-64",
    "stream": False,
    "headers": {
        "accept": ["*/*"],
        "accept-encoding": ["gzip, deflate, br"],
        "content-type": ["application/json"],
        "user-agent": ["bench-client/1.0 (linux; x86_64) python/3.11"],
        "x-request-source": ["bench"],
        "traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    },
    "query": {},
    "metadata": {"path": "/v1/chat/completions", "note": "n" * 340},
    "available_providers": [f"openai-compatible-bench-{number}" for number in range(6)],
    "body_size": 1024,
}


async def timed(call: Callable[[], Awaitable[None]], seconds: float) -> dict[str, float]:
    """Call over and over; nanoseconds of each become the 50th and 99th percentile in microseconds."""
    for _ in range(WARM_UP_CALLS):
        await call()
    taken_ns: list[int] = []
    deadline_ns = time.perf_counter_ns() + int(seconds * 1e9)
    before_ns = time.perf_counter_ns()
    while before_ns < deadline_ns:
        await call()
        after_ns = time.perf_counter_ns()
        taken_ns.append(after_ns - before_ns)
        before_ns = after_ns
    taken_ns.sort()
    return {
        "p50_us": taken_ns[len(taken_ns) // 2] / 1000,
        "p99_us": taken_ns[len(taken_ns) * 99 // 100] / 1000,
        "calls": len(taken_ns),
    }


async def drive_echo(seconds: float, prefix: Sequence[str]) -> dict[str, float]:
    """The yardstick."""
    child = await asyncio.create_subprocess_exec(
        *prefix,
        sys.executable,
        str(HERE / "contestants" / "echo_child.py"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    assert child.stdin is not None and child.stdout is not None
    stdin, stdout = child.stdin, child.stdout
    call_id = 0

    async def call() -> None:
        nonlocal call_id
        call_id += 1
        stdin.write(
            msgspec.json.encode({"kind": "call", "id": call_id, "method": "model.route", "params": PARAMS}) + b"\n"
        )
        if msgspec.json.decode(await stdout.readline())["id"] != call_id:
            raise RuntimeError("the echo child answered out of turn")

    result = await timed(call, seconds)
    stdin.close()
    await child.wait()
    return result


async def drive_plugin(seconds: float, prefix: Sequence[str]) -> dict[str, float]:
    """Our side: everything the gateway does for a call below its door to plugin code."""
    directory = HERE / "plugins" / "bench-json-router"
    child = subprocess.Popen(  # noqa: ASYNC220 - asyncio would wrap the pipes in streams of its own
        [*prefix, sys.executable, "-m", "pluginapi.run", "plugin:EmptyAnswer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=directory,
        env={**os.environ, "JACKFIELD_PLUGIN_DIR": str(directory)},
    )
    assert child.stdin is not None and child.stdout is not None
    channel = await open_pipes(child.stdout, child.stdin)
    try:
        greeting = await host_handshake(
            channel, plugin_id="bench-json-router", host=HostInfo(name="bench", version="1")
        )
        session = Session(
            channel,
            role="host",
            features=greeting.features,
            peer="bench-json-router",
            peer_limits=greeting.peer.limits,
        )
        reader = asyncio.create_task(session.run(), name="session")
        request = msgspec.convert(PARAMS, ModelRouteRequest)

        async def call() -> None:
            reply = await session.start_call("model.route", request, timeout_ms=500).reply()
            answer = decode_result("model.route", reply.result, plugin_id="bench-json-router")
            if answer.target_kind:
                raise RuntimeError("the router has an opinion")

        result = await timed(call, seconds)
        await session.close()
        await reader
        return result
    finally:
        channel.abort()
        child.wait(timeout=10)


def main() -> None:
    """Drive and print."""
    kind, seconds, prefix = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
    drivers = {"echo": drive_echo, "plugin": drive_plugin}
    print(json.dumps(uvloop.run(drivers[kind](seconds, prefix))))


if __name__ == "__main__":
    main()

"""The yardstick for plugin calls: reads JSON lines, writes each back. As little as a child can do on an event loop."""

import asyncio
import sys

import msgspec
import uvloop


async def main() -> None:
    """Echo until standard input ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    writer, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
    while line := await reader.readline():
        writer.write(msgspec.json.encode(msgspec.json.decode(line)) + b"\n")


uvloop.run(main())

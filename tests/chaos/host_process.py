"""The proxy in a process of its own, whose log is only kept while it runs: reading lines would cost the load's core."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tests.support.proxy import ROOT, runtime_dir

START_S: Final = 30.0
PIECE_BYTES: Final = 1 << 18


@dataclass(slots=True)
class HostProcess:
    """`jackfield serve`; `entries` parses what it logged so far."""

    config_file: Path
    process: asyncio.subprocess.Process
    url: str = ""
    _log: bytearray = field(default_factory=bytearray)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    def entries(self, event: str, **fields: Any) -> list[Mapping[str, Any]]:
        """The log entries whose event name begins like this, with these fields, in order."""
        name = f'"event":"{event}'.encode()
        whole = self._log[: self._log.rfind(b"\n") + 1]
        found = [json.loads(line) for line in whole.splitlines() if name in line and line.startswith(b"{")]
        return [entry for entry in found if entry["event"].startswith(event) and fields.items() <= entry.items()]

    async def ready(self) -> str:
        """The URL, once requests are served. Raises TimeoutError."""
        async with asyncio.timeout(START_S):
            while not (found := self.entries("proxy.ready")):
                self._news.clear()
                await self._news.wait()
        return str(found[0]["url"])

    async def lives(self, plugin_id: str, deaths: int) -> list[float]:
        """How long a plugin was away after each of its deaths, once it has died so often and is ready again."""
        async with asyncio.timeout(START_S):
            while len(away_s := self._away_s(plugin_id)) < deaths:
                self._news.clear()
                await self._news.wait()
        return away_s

    def _away_s(self, plugin_id: str) -> list[float]:
        away_s: list[float] = []
        died: datetime | None = None
        for entry in self.entries("plugin.", plugin_id=plugin_id):
            if entry["event"] == "plugin.died":
                died = died or moment(entry)
            elif died is not None and entry.get("new") == "ready":
                away_s.append((moment(entry) - died).total_seconds())
                died = None
        return away_s

    async def read(self) -> None:
        """Keep the log until its end."""
        assert self.process.stderr is not None
        while piece := await self.process.stderr.read(PIECE_BYTES):
            self._log += piece
            self._news.set()


def moment(entry: Mapping[str, Any]) -> datetime:
    """When a line was logged."""
    return datetime.fromisoformat(entry["time"].replace("Z", "+00:00"))


@asynccontextmanager
async def host_process(config_file: Path, *, pin: Sequence[str]) -> AsyncIterator[HostProcess]:
    """The proxy, ready; killed at the end if need be. `pin` is put before its command."""
    process = await asyncio.create_subprocess_exec(
        *(*pin, sys.executable, "-m", "host", "serve", "--config", str(config_file)),
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": runtime_dir(config_file)},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        limit=PIECE_BYTES,
    )
    host = HostProcess(config_file, process)
    reading = asyncio.create_task(host.read(), name="host-log")
    try:
        host.url = await host.ready()
        yield host
    finally:
        process.terminate()
        try:
            async with asyncio.timeout(START_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await reading

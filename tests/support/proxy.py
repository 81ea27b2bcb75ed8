"""A whole proxy for a test: in the test's own event loop, or as `python -m host serve` in a process of its own."""

import asyncio
import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner, Result
from msgspec.structs import replace

from host.app import Proxy
from host.cli import main
from host.config.load import LoadedConfig, parse_config
from host.config.model import Config

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60.0
"""A bound, not an expectation: a crowded machine needs many times what a process takes to start on a quiet one."""
CONFIG_NAME = "config.yaml"


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy in the test's event loop."""

    url: str
    proxy: Proxy
    config_file: Path

    async def reload(self) -> None:
        """The file is in force when this returns, whoever read it: the proxy watches it itself."""
        await self.proxy.reload_config()
        assert self.proxy.applier.status.state == "applied", self.proxy.applier.status


@asynccontextmanager
async def running_proxy(
    config: str | Config = "", *, directory: Path | None = None, watch: bool = False, demo: bool = False
) -> AsyncIterator[RunningProxy]:
    """A real proxy on a free port, stopped at the end. A config given as text is written to `directory` first."""
    with tempfile.TemporaryDirectory(prefix="jf-") as made:
        file = (directory or Path(made)) / CONFIG_NAME
        if isinstance(config, str):
            file.write_text(config, encoding="utf-8")
            loaded = parse_config(config, file=str(file))
        else:
            loaded = LoadedConfig(replace(config, directory=str(file.parent)), (), "")
        loaded = replace_config(loaded, port=0, demo=demo or loaded.config.demo)
        proxy = Proxy(loaded, config_path=file, watch=watch, demo=demo)
        try:
            async with asyncio.timeout(WAIT_S):
                await proxy.start()
            yield RunningProxy(proxy.url, proxy, file)
        finally:
            async with asyncio.timeout(WAIT_S):
                await proxy.stop()


def replace_config(loaded: LoadedConfig, **fields: Any) -> LoadedConfig:
    """The same with other values of the config."""
    return dataclasses.replace(loaded, config=replace(loaded.config, **fields))


@dataclass(slots=True)
class ServeProcess:
    """`jackfield serve` as an operator runs it. Its stderr is read all the time; JSON lines are log entries."""

    config_file: Path
    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)
    stdout: list[str] = field(default_factory=list)
    url: str = ""
    _readers: list[asyncio.Task[None]] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _is_over: bool = False
    """Nothing more comes."""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log entries so far."""
        return [entry for line in self.lines if (entry := _log_entry(line)) is not None]

    async def line(self, wanted: Callable[[str], bool], *, after: int = 0) -> str:
        """The first line of stderr from number `after` on that `wanted` accepts, as soon as it is written."""
        return self.lines[await self._past(wanted, after) - 1]

    async def event(self, name: str, *, after: int = 0, **fields: Any) -> dict[str, Any]:
        """The first log entry with this event name and these fields."""
        entry = _log_entry(self.lines[await self.past_event(name, after=after, **fields) - 1])
        assert entry is not None
        return entry

    async def past_event(self, name: str, *, after: int = 0, **fields: Any) -> int:
        """As `event`: for `after`, of what is written later than this entry."""

        def wanted(line: str) -> bool:
            entry = _log_entry(line)
            return entry is not None and entry["event"] == name and fields.items() <= entry.items()

        return await self._past(wanted, after)

    async def _past(self, wanted: Callable[[str], bool], after: int) -> int:
        def found() -> int | None:
            return next((at for at, line in enumerate(self.lines[after:], after + 1) if wanted(line)), None)

        try:
            async with asyncio.timeout(WAIT_S), self._news:
                await self._news.wait_for(lambda: found() is not None or self._is_over)
        except TimeoutError as error:
            error.add_note(self._said())
            raise
        past = found()
        assert past is not None, f"it has ended without that; {self._said()}"
        return past

    def _said(self) -> str:
        return "the latest it said:\n" + "\n".join(self.lines[-30:])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        """How it ended, once it has and everything it wrote is read."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait(self._readers)
            return await self.process.wait()

    def start_reading(self) -> None:
        """Collect what it writes from now on."""
        for stream, into in ((self.process.stderr, self.lines), (self.process.stdout, self.stdout)):
            assert stream is not None
            self._readers.append(asyncio.create_task(self._read(stream, into), name="serve-output"))

    async def _read(self, stream: asyncio.StreamReader, into: list[str]) -> None:
        """Collect lines until the end of `stream`."""
        while line := await stream.readline():
            async with self._news:
                into.append(line.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        if into is self.lines:
            async with self._news:
                self._is_over = True
                self._news.notify_all()


@asynccontextmanager
async def serve_process(
    config_file: Path,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "host"),
    directory: Path = ROOT,
    wait_ready: bool = True,
) -> AsyncIterator[ServeProcess]:
    """`serve --config config_file …`, ready for requests unless `wait_ready` is off; killed at the end if need be."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *("serve", "--config", str(config_file), *arguments),
        cwd=directory,
        env={**os.environ, "XDG_RUNTIME_DIR": runtime_dir(config_file), **(environment or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    served = ServeProcess(config_file, process)
    served.start_reading()
    try:
        if wait_ready:
            served.url = (await served.event("proxy.ready"))["url"]
        yield served
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await served.exit_code()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def run_command(config_file: Path, *arguments: str) -> Result:
    """A `jackfield …` command on this configuration file: `exit_code`, `stdout`, `stderr`."""
    runner = CliRunner(env={"XDG_RUNTIME_DIR": runtime_dir(config_file)})
    async with asyncio.timeout(WAIT_S):
        return await asyncio.to_thread(runner.invoke, main, [*arguments, "--config", str(config_file)])


def runtime_dir(config_file: Path) -> str:
    """Where control sockets lie: beside the config file, so that tests never meet each other's."""
    return str(config_file.parent)


def _log_entry(line: str) -> dict[str, Any] | None:
    try:
        entry = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return entry if isinstance(entry, dict) and "event" in entry else None

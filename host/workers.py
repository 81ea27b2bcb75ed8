"""`workers: N`: a parent that keeps N serving processes on one port. It serves nothing itself.

Every worker listens on the same address (SO_REUSEPORT); the kernel spreads connections over them. They share state
through Redis or Valkey; each supervises its own plugin processes. A worker that ends is started again; one that cannot
start at all ends everything with its exit code.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
import structlog

from host.config.model import Config, config_path
from host.config.values import seconds
from host.state.server import NoStateServer, StateServer

log = structlog.get_logger("host.workers")

READY_LINE: Final = "jackfield worker ready"
BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
STABLE_S: Final = 10.0
"""A worker that served so long starts again at once, and from the shortest pause."""
KILL_AFTER_S: Final = 30.0
"""Beyond the time that requests have to finish."""
EXIT_START: Final = 69


class _Worker:
    """One child and what keeps it alive."""

    def __init__(
        self, number: int, command: Sequence[str], *, again: Sequence[str] = (), held: Sequence[int] = ()
    ) -> None:
        """`again`: the command for a child in place of one that has served, where it differs. `held`: descriptors
        that stay open as long as the child lives."""
        self.number: Final = number
        self._command: Final = command
        self._again: Final = again or command
        self._held: Final = held
        self.process: asyncio.subprocess.Process | None = None
        self.ready = asyncio.Event()
        self.stopping: Final = asyncio.Event()
        self._serves = False
        self._is_reload_due = False

    async def run(self) -> int:
        """Keep it running until told to stop; the exit code when it never became ready."""
        pause_s = BACKOFF_MIN_S
        while True:
            code, served_s = await self._once()
            if self.stopping.is_set() or (served_s is None and not self.ready.is_set()):
                return code
            pause_s = BACKOFF_MIN_S if (served_s or 0.0) >= STABLE_S else min(pause_s * 2, BACKOFF_MAX_S)
            wait_s = 0.0 if (served_s or 0.0) >= STABLE_S else pause_s * random.uniform(0.8, 1.2)
            log.error("worker.ended", worker=self.number, code=code, again_in_s=round(wait_s, 1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), wait_s)
                return code

    async def _once(self) -> tuple[int, float | None]:
        """Exit code, and how long it served; None when it never did."""
        self._is_reload_due = False  # it reads everything anew
        try:
            # Its standard input tells it when this process is gone; a session of its own keeps Ctrl-C to the parent.
            process = self.process = await asyncio.create_subprocess_exec(
                *(self._again if self.ready.is_set() else self._command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=self._held,
            )
        except OSError as error:
            log.error("worker.not_started", worker=self.number, reason=str(error))
            return EXIT_START, None
        if self.stopping.is_set():
            process.terminate()
        began_s: float | None = None
        assert process.stdout is not None
        async for line in _lines(process.stdout):
            if line.decode("utf-8", "replace").strip() == READY_LINE:
                began_s = time.monotonic()
                self._came_up()
        self._serves = False
        code = await process.wait()
        return code, None if began_s is None else time.monotonic() - began_s

    def _came_up(self) -> None:
        self._serves = True
        self.ready.set()
        if self._is_reload_due:
            self.reload()

    def reload(self) -> None:
        """Let it read everything anew, as soon as it can be told: before that the signal would end it."""
        self._is_reload_due = not self._serves
        if self._serves:
            self.send(signal.SIGHUP)

    def stop(self) -> None:
        """Tell it to end, and do not start it again."""
        self.stopping.set()
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


async def _lines(output: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What it prints, without lines that are too long: whatever a plugin inside of it prints ends nothing."""
    while True:
        try:
            line = await output.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line


async def serve_workers(config: Config, config_file: Path, *, count: int, arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. `arguments` are those of `serve` for each worker."""
    # Until the workers are there, nobody has read anything that could be read anew.
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, ())
    async with AsyncExitStack() as stack:
        try:
            port = stack.enter_context(_held_port(config))
        except OSError as error:
            click.echo(f"Cannot start: cannot listen on {config.host}:{config.port}: {error.strerror}", err=True)
            return EXIT_START
        state_url, held = "", tuple[int, ...]()
        grace_s = seconds(config.shutdown_timeout) + KILL_AFTER_S
        if not config.state.url:
            server = StateServer(Path(config_path(config, "state-server")), earlier_s=grace_s)
            stack.push_async_callback(server.stop)
            try:
                await server.start()
            except NoStateServer as error:
                click.echo(f"Cannot start: {error}", err=True)
                return EXIT_START
            # The server is there until the last worker is gone, even when this process is killed.
            state_url, held = server.url, (server.held,)
        base = [sys.executable, "-m", "host", "serve", "--config", str(config_file), *arguments]
        workers = []
        for number in range(1, count + 1):
            first, again = (
                [*base, "--worker", f"{number}/{count}:{port}{suffix}", "--worker-state", state_url]
                for suffix in ("", ":again")
            )
            workers.append(_Worker(number, first, again=again, held=held))
        scheme = "https" if config.tls.enable else "http"
        return await _supervise(workers, url=f"{scheme}://{config.host}:{port}", grace_s=grace_s)


async def _supervise(workers: Sequence[_Worker], *, url: str, grace_s: float) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, _reload, workers)
    running = {asyncio.create_task(worker.run(), name=f"worker-{worker.number}") for worker in workers}
    waiting = asyncio.create_task(stopping.wait(), name="stop-signal")
    up = asyncio.create_task(_say_when_ready(workers, url), name="ready")
    done, _ = await asyncio.wait({*running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    codes = [task.result() for task in done & running]
    for worker in workers:
        worker.stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Asked twice: the workers end at once.
        loop.add_signal_handler(number, _tell, workers, signal.SIGTERM)
    _, late = await asyncio.wait(running, timeout=grace_s)
    if late:
        _tell(workers, signal.SIGKILL)
        await asyncio.wait(late)
    for task in (waiting, up):
        task.cancel()
    return next((code for code in codes if code), 0)


def _reload(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.reload()


def _tell(workers: Sequence[_Worker], number: signal.Signals) -> None:
    for worker in workers:
        worker.send(number)


async def _say_when_ready(workers: Sequence[_Worker], url: str) -> None:
    for worker in workers:
        await worker.ready.wait()
    click.echo(f"{len(workers)} workers are listening on {url}", err=True)
    log.info("workers.ready", url=url, workers=len(workers))


@contextlib.contextmanager
def _held_port(config: Config) -> Iterator[int]:
    """The port for all workers: nobody else can take it while they start and restart. Raises OSError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    address = (config.host, config.port)
    if config.port:
        # Without SO_REUSEPORT: another program on this port must not get half of our clients, nor we of its.
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
        yield held.getsockname()[1]


def parent_is_gone() -> asyncio.Task[None]:
    """For a worker: a task that ends when the parent has closed our standard input."""
    return asyncio.create_task(_read_to_the_end(), name="parent")


async def _read_to_the_end() -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(os.dup(0), "rb")
    )
    try:
        while await reader.read(1024):
            pass
    finally:
        transport.close()

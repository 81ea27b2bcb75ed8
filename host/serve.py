"""`jackfield serve`: one process from reading the configuration to the last byte; the signals of an operator."""

import asyncio
import dataclasses
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

import click
from msgspec.structs import replace

from host import VERSION
from host.app import Proxy, StartError
from host.config.load import ConfigError, LoadedConfig, load_config
from host.init import write_skeleton
from host.observe.logs import configure_logs
from host.worker import SOLO, Worker
from host.workers import READY_LINE, parent_is_gone, serve_workers

EXIT_CONFIG: Final = 78
"""EX_CONFIG of sysexits.h: supervisors may stop restarting."""
EXIT_START: Final = 69
EXIT_HURRIED: Final = 130
"""A second signal came while requests were still being finished."""


def run(config_path: Path, *, watch: bool, demo: bool, worker: str = "", worker_state: str = "") -> int:
    """Serve until SIGTERM or SIGINT and return the exit code. `worker` is for the processes of `workers: N`."""
    if demo and not config_path.exists():
        write_skeleton(config_path.parent, demo=True)
    try:
        loaded = load_config(config_path)
    except ConfigError as error:
        click.echo(f"The configuration cannot be used:\n{error}", err=True)
        return EXIT_CONFIG
    if demo:
        loaded = dataclasses.replace(loaded, config=replace(loaded.config, demo=True))
    configure_logs(debug=loaded.config.debug)
    if loaded.config.workers > 1 and not worker:
        arguments = [*(["--watch"] if watch else []), *(["--demo"] if demo else [])]
        parent = serve_workers(loaded.config, config_path, count=loaded.config.workers, arguments=arguments)
        return _run_loop(parent)
    identity = _worker(worker, worker_state)
    try:
        return _run_loop(_serve(loaded, config_path=config_path, watch=watch, demo=demo, worker=identity))
    except StartError as error:
        click.echo(f"Cannot start: {error}", err=True)
        return EXIT_START


def _run_loop(main: Coroutine[Any, Any, int]) -> int:
    """uvloop where there is one; it halves the cost of a request."""
    if sys.platform == "win32":
        return asyncio.run(main)
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _worker(text: str, state_url: str) -> Worker:
    """`NUMBER/COUNT:PORT`, and `:again` for a process in place of another, as the parent writes it."""
    if not text:
        return SOLO
    number, _, rest = text.partition("/")
    count, port, *again = rest.split(":")
    return Worker(int(number), int(count), int(port), state_url, bool(again))


async def _serve(loaded: LoadedConfig, *, config_path: Path, watch: bool, demo: bool, worker: Worker) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    proxy = Proxy(loaded, config_path=config_path, watch=watch, demo=demo, worker=worker)
    orphaned = parent_is_gone() if worker.several else None
    if orphaned is not None:
        orphaned.add_done_callback(lambda _: stopping.set())
    loop.add_signal_handler(signal.SIGHUP, proxy.request_reload)
    try:
        if not await _started(proxy, stopping):
            return 0
        _settle_memory()
        click.echo(READY_LINE if worker.several else _banner(proxy, demo=demo), err=not demo and not worker.several)
        sys.stdout.flush()
        await stopping.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            # Asked twice: end at once. The guardian ends the plugin processes.
            loop.add_signal_handler(number, os._exit, EXIT_HURRIED)
        await proxy.stop()
        if orphaned is not None:
            orphaned.cancel()
    return 0


async def _started(proxy: Proxy, stopping: asyncio.Event) -> bool:
    """Start, or give up when a signal comes before a slow plugin is up. Raises StartError."""
    starting = asyncio.create_task(proxy.start(), name="start")
    told_to_stop = asyncio.create_task(stopping.wait(), name="stop-signal")
    await asyncio.wait((starting, told_to_stop), return_when=asyncio.FIRST_COMPLETED)
    told_to_stop.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait((starting,))
        return False
    starting.result()
    return True


def _settle_memory() -> None:
    """What start-up made lives as long as the process: keep the collector from walking it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def _banner(proxy: Proxy, *, demo: bool) -> str:
    where = f"Jackfield {VERSION} is listening on {proxy.url}"
    if not demo:
        return where
    body = '{"model": "demo-1", "messages": [{"role": "user", "content": "Hello, Jackfield"}]}'
    return "\n".join(
        [
            where,
            "",
            "Try it (no key needed on this machine):",
            "",
            f"  curl {proxy.url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
            "",
            f"The model demo-1 is sent to the plugin echo by the plugin demo-router, {proxy.describe_demo_router()}.",
            'Add `"stream": true`, or point an SDK at it: OpenAI at '
            f"{proxy.url}/v1, Anthropic and Gemini at {proxy.url}; any key will do.",
            "",
            f"Next:  jackfield plugins list --config {proxy.config_path}",
            f"       edit {proxy.config_path} (it is watched), or drop a plugin into plugins/ beside it",
            f"       jackfield explain X-REQUEST-ID-OF-AN-ANSWER --config {proxy.config_path}",
            "       README.md: write a plugin in 20 lines",
        ]
    )

"""`jackfield plugins dev`: build, serve, watch, and tell what happens, until Ctrl-C."""

import asyncio
import os
import shlex
import signal
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from host.app import StartError
from host.dev.build import Build
from host.dev.gateway import MODELS, DevGateway
from host.dev.lines import DevLog
from host.dev.screen import Screen
from host.dev.watch import Watch, digest
from host.runtime.manifest import MANIFEST_NAME, Manifest, ManifestError, load_manifest

EXIT_USAGE: Final = 2
EXIT_START: Final = 69
EXIT_HURRIED: Final = 130


def develop(folder: Path, *, port: int) -> int:
    """Serve the plugin in `folder` until SIGINT or SIGTERM; the exit code."""
    folder = folder.absolute()
    try:
        manifest = load_manifest(folder)
    except FileNotFoundError:
        click.echo(f"there is no {folder / MANIFEST_NAME}; `jackfield plugins new NAME` makes a plugin", err=True)
        return EXIT_USAGE
    except (ManifestError, OSError) as error:
        click.echo(str(error), err=True)
        return EXIT_USAGE
    try:
        return asyncio.run(_Development(folder, manifest, port=port).run())
    except StartError as error:
        click.echo(f"Cannot start: {error}", err=True)
        return EXIT_START


class _Development:
    def __init__(self, folder: Path, manifest: Manifest, *, port: int) -> None:
        self._folder = folder
        self._manifest = manifest
        self._port = port
        self._screen = Screen()
        self._stopping = asyncio.Event()
        self._loaded = ""
        """Digest of the files that run."""

    async def run(self) -> int:
        """Everything, in order. Raises StartError."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        watch = Watch(self._folder, self._stopping)
        changes = watch.changes()
        async with AsyncExitStack() as stack:
            while await self._built() is None:
                self._screen.plain("Waiting for a change.")
                if await anext(changes, self._stopping) is self._stopping:
                    return 0
            base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jackfield-dev-")))
            gateway = DevGateway(base, self._folder, port=self._port)
            log = DevLog(self._screen, self._manifest.id, {str(gateway.place_of(self._manifest)): str(self._folder)})
            log.install()
            stack.push_async_callback(gateway.stop)
            self._loaded = digest(self._folder)
            if not await self._unless_stopping(gateway.start(self._manifest)):
                return 0
            log.proxy = gateway.proxy
            self._screen.plain(self._banner(gateway))
            async for _ in changes:
                if not await self._unless_stopping(self._renew(gateway)):
                    break
            self._screen.plain("\nStopping.")
        return 0

    def _stop(self) -> None:
        if self._stopping.is_set():
            os._exit(EXIT_HURRIED)  # asked twice; the guardian ends the plugin's processes
        self._stopping.set()

    async def _unless_stopping(self, work: Any) -> bool:
        """Whether `work` was done; it is cancelled when the end is asked for first. Raises what it raises."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
            return False
        task.result()
        return True

    async def _built(self) -> Build | None:
        """A build that succeeded; None when it failed, or when the end was asked for."""
        build = Build(self._manifest.dev.build, self._folder, self._screen)
        done: list[bool] = []

        async def work() -> None:
            done.append(not self._manifest.dev.build or await build.run())

        return build if await self._unless_stopping(work()) and done == [True] else None

    async def _renew(self, gateway: DevGateway) -> None:
        """Files have changed: build, and let the new version take over. What cannot run changes nothing."""
        started_s = time.monotonic()
        try:
            manifest = load_manifest(self._folder)
        except (ManifestError, OSError) as error:
            self._screen.event(self._manifest.id, f"{error}\nThe version before goes on.", style="red")
            return
        if manifest.id != self._manifest.id:
            self._screen.event(self._manifest.id, f"it is called {manifest.id} now: start again", style="red")
            return
        self._manifest = manifest
        build = await self._built()
        if build is None:
            self._screen.event(manifest.id, "the version before goes on")
            return
        files = digest(self._folder)
        if files == self._loaded:
            return  # what has changed is what the build wrote
        build.show()
        self._loaded = files
        await gateway.renew(manifest)
        status = gateway.status
        took = f"{time.monotonic() - started_s:.2f} s"
        if status is not None and status.state == "ready" and not status.reason:
            self._screen.event(manifest.id, f"the new version runs after {took}", style="green")
        else:
            reason = status.reason if status is not None else "the gateway does not know it any more"
            self._screen.event(manifest.id, f"the version before goes on: {reason}", style="red")

    def _banner(self, gateway: DevGateway) -> str:
        status = gateway.status
        manifest = self._manifest
        where = f"process {status.pid}" if status is not None and status.pid else "no process"
        lines = ["", f"{manifest.id} {manifest.version}, {where}, behind {gateway.url}"]
        if status is not None and status.reason:
            lines += ["", self._screen.styled(f"It does not run: {status.reason}", "red")]
        lines += ["", _curl(manifest, gateway.url), ""]
        lines.append(
            f"Other models: echo (inside), {', '.join(MODELS)} (a fake upstream with keys, in three protocols)."
        )
        lines.append(f"Save a file in {self._folder} and the new version takes over. Ctrl-C ends everything.")
        return "\n".join(lines)


def _curl(manifest: Manifest, url: str) -> str:
    dev = manifest.dev
    body = {"model": dev.model, **({"stream": True} if dev.stream else {}), **msgspec.to_builtins(dev.body)}
    body["messages"] = [{"role": "user", "content": dev.message}]
    headers = {"Content-Type": "application/json", **dev.headers}
    words = ["curl", "-sN" if dev.stream else "-s", f"{url}/v1/chat/completions"]
    words += [word for name, value in headers.items() for word in ("-H", shlex.quote(f"{name}: {value}"))]
    words += ["-d", shlex.quote(msgspec.json.encode(body).decode())]
    return "  " + " ".join(words)

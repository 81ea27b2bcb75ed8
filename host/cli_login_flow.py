"""A login from the command line: the plugin runs here for as long as it takes, with a callback address on loopback.

Nothing is asked of a running proxy: what is stored in `auth-dir` it sees by itself.
"""

import asyncio
import html
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, TypeAlias

import click
from aiohttp import web
from msgspec.structs import replace

from host.app import discover_plugins
from host.config.load import ConfigError, load_config
from host.config.model import Config, PluginSection, config_path
from host.credential_parts import CredentialParts
from host.credentials.editor import CredentialError
from host.credentials.login import LoginSessions, LoginStarted, LoginStatus, Redirect, redirect_of
from host.install.lock import Seals
from host.observe.logs import configure_logs
from host.runtime.apply import PluginRegistry
from host.runtime.auth_plugins import LOGIN_START
from host.runtime.callback_http import HttpCallbacks, http_settings
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.discover import PluginSource
from host.runtime.handle import PluginState
from host.runtime.invoke import Invoker
from host.runtime.plan import make_plan
from host.runtime.policy import PolicyError
from host.runtime.processes import Processes, timings_of
from host.runtime.remembered import recall
from host.runtime.resolve import UnresolvedValue
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from host.upstream import ClientLimits, UpstreamClient

Bring: TypeAlias = Callable[[Redirect], None]
"""Hands a login what the browser brought. Raises CredentialError when it does not want it."""
CALLBACK_PATH: Final = "/oauth-callback"
POLL_S: Final = 0.5
EXIT_INTERRUPTED: Final = 130


def log_in(config_file: Path, provider: str, *, open_browser: bool, callback_port: int, plugin_id: str) -> int:
    """Log in, or list who can be logged in to; the exit code."""
    try:
        loaded = load_config(config_file)
    except ConfigError as error:
        click.echo(str(error), err=True)
        return 1
    configure_logs(debug=loaded.config.debug, quiet=True)
    try:
        return asyncio.run(_run(loaded.config, provider, open_browser, callback_port, plugin_id))
    except KeyboardInterrupt:
        click.echo("The login was given up; nothing was stored.", err=True)
        return EXIT_INTERRUPTED


async def _run(config: Config, provider: str, open_browser: bool, callback_port: int, plugin_id: str) -> int:
    wanted = _with_login_plugins(config, plugin_id)
    async with _credentials(wanted) as parts:
        if not provider:
            return _list(parts.logins)
        try:
            return await _log_in(parts, config, provider, open_browser, callback_port)
        except CredentialError as error:
            click.echo(str(error), err=True)
            if error.http_status == 404:
                _list(parts.logins, err=True)
            return 1


async def _log_in(parts: CredentialParts, config: Config, provider: str, open_browser: bool, callback_port: int) -> int:
    came_back = asyncio.Event()

    def bring(redirect: Redirect) -> None:
        """Raises CredentialError when the login does not want it."""
        parts.logins.callback(redirect.state, code=redirect.code, error=redirect.error, provider=redirect.provider)
        came_back.set()

    async with _callback_server(bring, callback_port) as callback_url, _pasted(bring):
        started = await parts.logins.start(provider, callback_url)
        _announce(started)
        if open_browser:
            await asyncio.to_thread(webbrowser.open, started.url)
        status = await _outcome(parts.logins, started, came_back)
    if status.status != "ok":
        click.echo(f"The login failed: {status.error}", err=True)
        return 1
    for credential_id in status.ids:
        click.echo(f"Stored {credential_id} in {config_path(config, config.auth_dir)}")
    return 0


async def _outcome(logins: LoginSessions, started: LoginStarted, came_back: asyncio.Event) -> LoginStatus:
    """Ask until the login is over; at once when the browser is back. It expires by itself."""
    while (status := await logins.poll(started.state)).status == "wait":
        came_back.clear()
        try:
            async with asyncio.timeout(POLL_S):
                await came_back.wait()
        except TimeoutError:
            continue
    return status


def _announce(started: LoginStarted) -> None:
    click.echo(f"Open this address in a browser:\n\n  {started.url}\n")
    if started.user_code:
        click.echo(f"and type in the code  {started.user_code}\n")
    click.echo(f"Waiting for {started.provider}, at most {round(started.lifetime_s / 60)} minutes; Ctrl-C gives up.")
    if sys.stdin.isatty() and not started.user_code:
        click.echo("If the browser runs on another machine, paste the address here that it ends up at.")


def _list(logins: LoginSessions, *, err: bool = False) -> int:
    providers = logins.providers()
    if not providers:
        click.echo("No enabled plugin logs in to anything; see docs/credentials.md.", err=True)
        return 1
    click.echo(f"Who can be logged in to: {', '.join(providers)}", err=err)
    return 0


@asynccontextmanager
async def _callback_server(bring: Bring, port: int) -> AsyncIterator[str]:
    """Where the browser comes back to: a page on loopback, for the length of the login."""

    async def came_back(request: web.Request) -> web.Response:
        try:
            bring(redirect_of(str(request.url)))
        except CredentialError as error:
            return _page(error.http_status, f"This login cannot go on: {error}")
        return _page(200, "Done. You can close this window and go back to the terminal.")

    app = web.Application()
    app.router.add_get(CALLBACK_PATH, came_back)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            raise CredentialError(409, f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from None
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{CALLBACK_PATH}"
    finally:
        await runner.cleanup()


def _page(status: int, text: str) -> web.Response:
    body = f"<!doctype html><meta charset=utf-8><title>Jackfield</title><p>{html.escape(text)}</p>"
    return web.Response(status=status, text=body, content_type="text/html", headers={"Cache-Control": "no-store"})


@asynccontextmanager
async def _pasted(bring: Bring) -> AsyncIterator[None]:
    """Takes an address that is pasted into the terminal, when there is one."""
    if not sys.stdin.isatty():
        yield
        return
    loop = asyncio.get_running_loop()

    def read() -> None:
        line = sys.stdin.readline()
        if not line:
            loop.remove_reader(sys.stdin)
        elif line.strip():
            try:
                bring(redirect_of(line))
            except CredentialError as error:
                click.echo(f"That was not it: {error}", err=True)

    loop.add_reader(sys.stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)


@asynccontextmanager
async def _credentials(config: Config) -> AsyncIterator[CredentialParts]:
    """The credentials and the plugins that know them, without anything that serves requests."""
    async with AsyncExitStack() as stack:
        tasks = TaskGroup("login")
        stack.push_async_callback(tasks.stop)
        ca_file = config_path(config, config.upstream_ca_file) if config.upstream_ca_file else None
        upstream = UpstreamClient(limits=ClientLimits(extra_ca_file=ca_file))
        stack.push_async_callback(upstream.close)
        http = HttpCallbacks(upstream, settings=http_settings(config))
        callbacks = HostCallbacks(http=http, kv=KvCallbacks(MemoryStore()), tasks=tasks)
        invoker = Invoker()
        processes = Processes(callbacks=callbacks, tasks=tasks, timings=lambda: timings_of(config.plugins))
        stack.push_async_callback(processes.stop)
        registry = PluginRegistry(
            carriers=Carriers(callbacks=callbacks, tasks=tasks, process=processes),
            callbacks=callbacks,
            invoker=invoker,
            tasks=tasks,
            check=Seals(Path(config.directory)),
            needed=lambda _: frozenset(),
        )
        stack.push_async_callback(registry.stop)
        parts = CredentialParts(
            config,
            invoker=invoker,
            tasks=tasks,
            snapshot=lambda: registry.snapshot,
            rebuild=lambda: None,
            reapply=_nothing,
        )
        callbacks.auth.files = parts.files
        await registry.apply(config)
        for status in registry.statuses():
            if status.state != PluginState.READY and config.plugins.configs[status.id].enabled:
                click.echo(f"plugin {status.id} is {status.state}: {status.reason}", err=True)
        yield parts


async def _nothing() -> None:
    """Nobody serves requests here, so no further plugin is needed."""


def _with_login_plugins(config: Config, plugin_id: str) -> Config:
    """The configuration with only those plugins enabled that may know how to log in."""
    sections: dict[str, PluginSection] = {}
    for source in discover_plugins(config).found:
        section = config.plugins.configs.get(source.plugin_id)
        if section is None or not section.enabled or not config.plugins.enabled:
            continue
        wanted = source.plugin_id == plugin_id if plugin_id else _may_log_in(source, config)
        sections[source.plugin_id] = replace(section, enabled=wanted)
    return replace(config, plugins=replace(config.plugins, configs=_only_enabled(sections)))


def _only_enabled(sections: Mapping[str, PluginSection]) -> dict[str, PluginSection]:
    return {plugin_id: section for plugin_id, section in sections.items() if section.enabled}


def _may_log_in(source: PluginSource, config: Config) -> bool:
    """Whether a plugin says so, said so when it ran last, or has never said what it does."""
    try:
        remembered = recall(make_plan(source, config))
    except (PolicyError, UnresolvedValue):
        remembered = None
    known = remembered.capabilities if remembered is not None else source.manifest.methods
    return not known or LOGIN_START in known

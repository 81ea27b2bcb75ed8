"""The composition root: configuration -> objects -> a listening proxy, in the order in which they are needed.

`Proxy.start` reads top to bottom as the proxy comes up; everything it makes is taken down in reverse by `stop`.
"""

import asyncio
import os
import ssl
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from aiohttp import web
from msgspec.structs import replace

from host.config.diff import changes
from host.config.load import ConfigError, ConfigUnread, LoadedConfig, load_config
from host.config.model import Config, config_path
from host.config.values import seconds
from host.control import ControlServer, socket_path
from host.credential_parts import CredentialParts
from host.credentials.config_keys import exclude_key
from host.door import Door
from host.install.lock import Seals, may_enable, note_enabled
from host.loopback import is_loopback
from host.management.applier import ConfigApplier
from host.management.error_events import ErrorEvents
from host.management.listener import OwnListener
from host.management.peers import MetricsGatherer
from host.management.records import Records
from host.management.secret import with_hashed_key
from host.management.shared_usage import SharedUsage
from host.management.wiring import Parts, management
from host.observe.logs import set_debug
from host.observe.metrics import Metrics
from host.observe.trace import DecisionTrace
from host.peers import peers_of
from host.pipeline.access import Access
from host.pipeline.attach import PoolAttacher
from host.pipeline.execute import Gateway
from host.pipeline.state import GatewayState, build_state
from host.pool_parts import PoolParts
from host.recording.run import Recordings, secrets_of
from host.reload import Reloader
from host.runtime.apply import PluginRegistry
from host.runtime.bundled import BUNDLED_PACKAGE, bundled_dir
from host.runtime.callback_http import HttpCallbacks, http_settings
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.discover import Discovery, discover, installed_entry_points
from host.runtime.handle import EMPTY_SNAPSHOT, PluginSnapshot
from host.runtime.invoke import Invoker
from host.runtime.processes import Processes, timings_of
from host.runtime.scope import CallScope
from host.shadow.run import Shadows
from host.sharing import Sharing
from host.state.opening import StateSetupError, open_state
from host.state.store import readiness
from host.tasks import TaskGroup
from host.upstream import ClientLimits, UpstreamClient
from host.web.app import make_app
from host.web.tls import TlsProblem, tls_context
from host.worker import SOLO, Worker

log = structlog.get_logger("host.app")

LISTEN_BACKLOG: Final = 1024
FRONTEND_AUTH: Final = "frontend_auth.authenticate"


class StartError(Exception):
    """The proxy cannot start; the message says why and what to do."""


def discover_plugins(config: Config) -> Discovery:
    """What lies where this configuration looks for plugins; runs nothing."""
    plugins_dir = Path(config_path(config, config.plugins.dir))
    return discover(bundled_dir(), plugins_dir, installed_entry_points(), bundled_package=BUNDLED_PACKAGE)


def public_listener_problem(config: Config, *, has_frontend_auth: bool | None) -> str | None:
    """Why this configuration must not listen, if so: a public address that anybody may use (design decision 12).

    `has_frontend_auth` None: not known yet, which is no problem yet when some plugin is enabled.
    """
    if is_loopback(config.host) or config.api_keys or has_frontend_auth:
        return None
    enabled = config.plugins.enabled and any(section.enabled for section in config.plugins.configs.values())
    if has_frontend_auth is None and enabled:
        return None
    return (
        f"`host: {config.host}` is a public address and anybody could use it; "
        "add `api-keys`, enable a frontend-auth plugin, or listen on 127.0.0.1"
    )


class Proxy:
    """One running proxy."""

    def __init__(
        self,
        loaded: LoadedConfig,
        *,
        config_path: Path,
        watch: bool,
        demo: bool = False,
        worker: Worker = SOLO,
    ) -> None:
        self.config_path: Final = config_path
        self.config = loaded.config
        self._loaded = loaded
        self._watch = watch
        self._demo = demo
        self._worker = worker
        self._stack = AsyncExitStack()
        self._ready, self._applying = asyncio.Event(), asyncio.Lock()
        self._draining, self.has_read = False, True
        self._port = loaded.config.port
        self.sharing: Sharing | None = None
        self.trace, self.records = DecisionTrace(), Records(lambda: self.config)
        self.management_url = ""
        """Of the management API's own listener, when it has one."""

    @property
    def url(self) -> str:
        """Where clients on this machine reach the proxy."""
        scheme = "https" if self.config.tls.enable else "http"
        host = self.config.host if is_loopback(self.config.host) else "127.0.0.1"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    async def start(self) -> None:
        """Come up; returns when requests are served. Raises StartError; what was started is stopped by `stop`."""
        self._loaded = await with_hashed_key(self._loaded, self.config_path)
        self.config = self._loaded.config
        for warning in self._loaded.warnings:
            log.warning("config.warning", where=f"{warning.file}:{warning.line}", message=warning.message)
        if (problem := public_listener_problem(self.config, has_frontend_auth=None)) is not None:
            raise StartError(problem)
        self._make_parts()
        if self._is_shared:
            self.sharing = Sharing(self.shared, self.credential_parts, lambda: self.gateway.state, self.tasks)
        await self.shared.start()
        # The listener opens before the plugins are up, so that a health check sees "not ready" instead of nothing.
        if not self._worker.replaces:
            await self._listen()
        try:
            await self.credential_parts.open()
        except OSError as error:
            raise StartError(f"`auth-dir` cannot be used: {error}") from None
        await self.applier.apply(self._loaded, self.applier.stamp())
        if (problem := self._listener_problem(self.config, self.registry.snapshot)) is not None:
            raise StartError(problem)
        if self._worker.replaces:
            await self._listen()
        self._ready.set()
        self.access.open()
        await self._watch_for_changes()
        log.info("proxy.ready", url=self.url, plugins=len(self.registry.snapshot.plugins))

    async def stop(self) -> None:
        """Stop accepting, let requests finish for `shutdown-timeout`, stop plugins; safe at any time after creation."""
        self._draining = True
        await self._stack.aclose()

    def request_reload(self) -> None:
        """Read configuration and plugin files anew, in the background (SIGHUP); while starting they are read anyway."""
        if self._ready.is_set() and not self._draining:
            self.reloader.trigger(reload_plugins=True)

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """For `/readyz`: plugins are up, and no hook that must not be skipped is without its plugin."""
        missing = self.registry.unready_guards() if self._ready.is_set() else ()
        is_ready = self._ready.is_set() and not missing and not self._draining
        state = "draining" if self._draining else "ready" if is_ready else "starting"
        shared = readiness(self.shared) if self._is_shared else {}
        return is_ready, {"status": state, "waiting_for": sorted(missing), **shared}

    @property
    def _is_shared(self) -> bool:
        """Whether there may be other nodes or workers."""
        return bool(self.config.state.url or self._worker.state_url)

    def describe_demo_router(self) -> str:
        """Where the demo's router runs, for the banner."""
        status = self.registry.status("demo-router")
        pid = getattr(status, "pid", None)
        return f"a process of its own (pid {pid})" if pid else "a process of its own"

    def _make_parts(self) -> None:
        """Everything that needs no waiting, bottom up."""
        self.tasks = TaskGroup("host")
        self._stack.push_async_callback(self.tasks.stop)
        self._open_state()
        self.metrics = Metrics()
        if (peers := peers_of(self.config_path, self._worker)) is not None:
            self.metrics.gather = MetricsGatherer(peers)
        limits = ClientLimits(extra_ca_file=self._absolute(self.config.upstream_ca_file))
        self.upstream = UpstreamClient(limits=limits)
        self._stack.push_async_callback(self.upstream.close)
        self.http = HttpCallbacks(
            self.upstream,
            attacher_of=self._attacher_of,
            settings=http_settings(self.config),
        )
        self.callbacks = HostCallbacks(
            http=self.http, kv=KvCallbacks(self.shared.store, nodes=lambda: self.shared.nodes), tasks=self.tasks
        )
        self.metrics.plugins.refused = self.callbacks.refusals.all
        self.invoker = Invoker(observe=self.metrics.plugins.observe)
        processes = Processes(
            callbacks=self.callbacks, tasks=self.tasks, timings=lambda: timings_of(self.config.plugins)
        )
        self._stack.push_async_callback(processes.stop)
        self.registry = PluginRegistry(
            carriers=Carriers(callbacks=self.callbacks, tasks=self.tasks, process=processes),
            callbacks=self.callbacks,
            invoker=self.invoker,
            tasks=self.tasks,
            bundled_dir=bundled_dir(),
            bundled_package=BUNDLED_PACKAGE,
            needed=lambda config: self.credential_parts.needed(config),
            check=Seals(Path(self.config.directory)),
        )
        self._stack.push_async_callback(self.registry.stop)
        self.credential_parts = CredentialParts(
            self.config,
            invoker=self.invoker,
            tasks=self.tasks,
            snapshot=lambda: self.registry.snapshot,
            rebuild=lambda: self._swap(self.config, self.registry.snapshot),
            reapply=self._apply_plugins,
            set_excluded=self._set_excluded,
        )
        self.credentials = self.credential_parts.manager
        self.callbacks.auth.files = self.credential_parts.files
        self.gateway = self._make_gateway(build_state(self.config, EMPTY_SNAPSHOT, manager=self.credentials))
        self.pool_parts = self._pool_parts()
        self.callbacks.models = self.gateway.models
        self._listen_to_calls()
        access = Access(invoker=self.invoker, state=lambda: self.gateway.state, trace=self.trace)
        self.access = Door(access)
        tasks = TaskGroup("management")
        self._stack.push_async_callback(tasks.stop)
        self.applier = ConfigApplier(self._apply, tasks, several=self._worker.several)
        self.management = management(self._management_parts(tasks))
        self._stack.callback(self.management.close)
        self._stack.push_async_callback(self.credential_parts.close)

    def _make_gateway(self, state: GatewayState) -> Gateway:
        return Gateway(invoker=self.invoker, state=state, tasks=self.tasks, trace=self.trace, recorder=self.records)

    def _listen_to_calls(self) -> None:
        """Recordings, and copies for shadows; neither costs a call anything while there is none."""
        self.recordings = Recordings(
            invoker=self.invoker, callbacks=self.callbacks, status=self.registry.status, secrets=self._secrets
        )
        Shadows(self.registry, invoker=self.invoker, callbacks=self.callbacks, secrets=self._secrets)

    def _open_state(self) -> None:
        try:
            self.shared = open_state(self.config, server_url=self._worker.state_url)
        except StateSetupError as error:
            raise StartError(str(error)) from None
        self._stack.push_async_callback(self.shared.stop)

    def _management_parts(self, tasks: TaskGroup) -> Parts:
        return Parts(
            file=self.config_path,
            config=lambda: self.config,
            registry=self.registry,
            applier=self.applier,
            metrics=self.metrics,
            trace=self.trace,
            logs=self.callbacks.logs,
            invoker=self.invoker,
            state=lambda: self.gateway.state,
            may_enable=lambda plugin_id: may_enable(Path(self.config.directory), plugin_id),
            recordings=self.recordings,
            credentials=self.credential_parts,
            records=self.records,
            shared=self.shared,
            shared_usage=self._shared_usage(tasks),
            upstream=self.upstream,
            url=lambda: self.management_url or self.url,
            refused=lambda config: self._listener_problem(config, self.registry.snapshot),
            tasks=tasks,
            peers=peers_of(self.config_path, self._worker),
        )

    def _shared_usage(self, tasks: TaskGroup) -> SharedUsage | None:
        if (queue := self.shared.usage) is None:
            return None
        # The server that was started for the workers is reached by nobody else.
        self.records.is_shared = bool(self.config.state.url)
        events = ErrorEvents(lambda: self.gateway.state.pool)
        usage = SharedUsage(self.records, self.shared, queue, tasks, events=events)
        self._stack.push_async_callback(usage.stop)
        return usage

    def _secrets(self, plugin_id: str) -> Iterator[str]:
        """What no recording of the plugin may hold."""
        yield from self.registry.secrets(plugin_id)
        yield from secrets_of(self.gateway.state.pool.credentials, (key.key for key in self.config.api_keys))

    def _pool_parts(self) -> PoolParts:
        return PoolParts(
            lambda: self.gateway.state,
            invoker=self.invoker,
            shared=self.shared,
            worker=self._worker,
            amend=self.credential_parts.renewer.amend,
            rebuild=lambda: self._swap(self.config, self.registry.snapshot),
            list_models=self.registry.refresh_models,
        )

    def _attacher_of(self, scope: CallScope) -> PoolAttacher:
        """Credentials of the state the request started with, so that a reload never pulls one away under it."""
        state: GatewayState = scope.request.state if scope.request is not None else self.gateway.state
        return state.attacher

    async def _listen(self) -> None:
        own_listener = bool(self.config.remote_management.listen)
        self._stack.push_async_callback(self.pool_parts.stop)
        app = make_app(
            self.gateway,
            self.access,
            state=lambda: self.gateway.state.config,
            health=self,
            metrics=self.metrics,
            management=None if own_listener else self.management.app.handle,
        )
        runner = web.ServerRunner(app, shutdown_timeout=seconds(self.config.shutdown_timeout))
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        tls = self._tls_context()
        site = web.TCPSite(
            runner,
            self.config.host,
            self._worker.port or self.config.port,
            backlog=LISTEN_BACKLOG,
            ssl_context=tls,
            reuse_port=self._worker.several or None,
        )
        try:
            await site.start()
        except OSError as error:
            raise _cannot_listen(f"{self.config.host}:{self.config.port}", error) from None
        self._port = runner.addresses[0][1]
        if own_listener:
            await self._listen_for_management(tls)
        self._stack.callback(self.access.close)

    async def _listen_for_management(self, tls: ssl.SSLContext | None) -> None:
        listener = OwnListener(self.management.app.handle, reuse_port=self._worker.several)
        self._stack.push_async_callback(listener.stop)
        try:
            await listener.start(self.config, tls=tls)
        except OSError as error:
            raise _cannot_listen(self.config.remote_management.listen, error) from None
        self.management_url = listener.url
        log.info("management.listening", url=listener.url)

    def _tls_context(self) -> ssl.SSLContext | None:
        try:
            return tls_context(self.config)
        except TlsProblem as error:
            raise StartError(str(error)) from None

    async def _apply_plugins(self, config: Config | None = None) -> None:
        """Start, stop and upgrade plugins for `config` (the present one), then swap the state in one assignment."""
        async with self._applying:
            config = config if config is not None else self.config
            self.http.settings = http_settings(config)
            await self._note_enabled(config)
            snapshot = await self.registry.apply(config)
            if await self.credential_parts.follow(config):
                snapshot = await self.registry.apply(config)
                await self.credential_parts.follow(config)
            self._swap(config, snapshot)
            await self.pool_parts.follow(config)

    async def _set_excluded(self, credential_id: str, excluded: bool) -> None:
        """Switch a configured key off or on in the file, and apply that. Raises KeyError for no such key."""
        async with self.applier.editing:
            change = partial(exclude_key, self.config_path, credential_id, excluded=excluded, before=self._loaded)
            loaded = await asyncio.to_thread(change)
            generation = self.applier.stamp()
        await self.applier.apply(loaded, generation)

    async def _note_enabled(self, config: Config) -> None:
        """What the file of the operator enables, the management API may enable again later."""
        enabled = [plugin_id for plugin_id, section in config.plugins.configs.items() if section.enabled]
        if not config.plugins.enabled or not enabled:
            return
        problem = await asyncio.to_thread(note_enabled, Path(config.directory), enabled)
        if problem is not None:
            log.info("plugins.lock_not_written", reason=problem)

    def _swap(self, config: Config, snapshot: PluginSnapshot) -> None:
        self.config = config
        self.gateway.state = build_state(config, snapshot, previous=self.gateway.state, manager=self.credentials)
        self.credential_parts.plugins_changed()
        self.pool_parts.swapped(self.gateway.state)
        if self.sharing is not None:
            self.sharing.follow()
        self.management.follow(config)

    async def _watch_for_changes(self) -> None:
        self.reloader = Reloader(self, watch_plugins=self._watch)
        self._stack.push_async_callback(self.reloader.stop)
        self.registry.on_change = lambda snapshot: self._swap(self.config, snapshot)
        await self.reloader.start()
        await self.credential_parts.start()
        if self._file_has_changed():
            self.reloader.trigger(reload_plugins=False)
        control = ControlServer(socket_path(self.config_path, self._worker.number), self.management.app.handle_local)
        try:
            await control.start()
        except OSError as error:
            log.warning("control.unavailable", reason=str(error))
        else:
            self._stack.push_async_callback(control.stop)
            self._stack.callback(self.recordings.stop)

    def _file_has_changed(self) -> bool:
        """Whether the file was edited after it was read and before anybody watched it."""
        try:
            return self.config_path.read_text(encoding="utf-8") != self._loaded.text
        except (OSError, UnicodeDecodeError):
            return False

    def is_in_force(self, text: str) -> bool:
        """As `host.reload.Reloadable.is_in_force`."""
        return text == self._loaded.text and self.applier.status.state == "applied"

    async def reload_config(self) -> bool:
        """Read the file and apply it; a broken one is reported and changes nothing. True when it was applied."""
        generation = self.applier.stamp()
        try:
            # Thousands of keys take a while to read; requests go on meanwhile.
            loaded = await asyncio.to_thread(load_config, self.config_path, before=self._loaded)
        except ConfigError as error:
            for problem in error.problems:
                log.error("config.rejected", where=f"{problem.file}:{problem.line}", message=problem.message)
            self.applier.rejected(error.problems, generation)
            self.has_read = not isinstance(error, ConfigUnread)
            return False
        self.has_read = bool(loaded.text.strip())
        if not self.has_read:
            log.warning("config.emptied", path=str(self.config_path))  # it is being saved
            return False
        return await self.applier.apply(loaded, generation)

    async def _apply(self, loaded: LoadedConfig) -> str | None:
        """Make `loaded` the configuration in force; why it cannot be, if so."""
        starting = not self._ready.is_set()
        loaded = await with_hashed_key(loaded, self.config_path)
        config = replace(loaded.config, demo=True) if self._demo else loaded.config
        # While starting nobody is served yet, and a frontend-auth plugin is not known before it has been started.
        problem = None if starting else self._listener_problem(config, self.registry.snapshot)
        if (problem := problem or self.credential_parts.problem(config)) is not None:
            log.error("config.rejected", where=str(self.config_path), message=problem)
            return problem
        self._note_restart_keys(config)
        changed = changes(self.config, config)
        if config.debug != self.config.debug:
            set_debug(config.debug)
        await self._apply_plugins(config)
        self._loaded = loaded
        if changed:
            log.info("config.changed", changes=changed)
        if not starting:
            log.info("config.applied", path=str(self.config_path))
        return None

    def _listener_problem(self, config: Config, snapshot: PluginSnapshot) -> str | None:
        listening = replace(config, host=self.config.host)
        return public_listener_problem(listening, has_frontend_auth=FRONTEND_AUTH in snapshot.bindings)

    def _note_restart_keys(self, config: Config) -> None:
        fixed = ("host", "port", "tls", "state", "workers")
        changed = [key for key in fixed if getattr(config, key) != getattr(self.config, key)]
        if config.remote_management.listen != self.config.remote_management.listen:
            changed.append("remote-management.listen")
        if changed:
            log.warning("config.needs_restart", keys=changed)

    def _absolute(self, path: str) -> str | None:
        return config_path(self.config, path) if path else None


def _cannot_listen(where: str, error: OSError) -> StartError:
    # A name that does not resolve has a number of another table.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return StartError(f"cannot listen on {where}: {reason}")

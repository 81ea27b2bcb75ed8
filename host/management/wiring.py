"""Puts the management API together. A further group of endpoints is one line in `endpoints_of`."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from host.config.model import Config
from host.credentials.auth_dir import AuthDirectory
from host.credentials.editor import CredentialEditor
from host.credentials.login import LoginSessions
from host.credentials.manager import CredentialManager
from host.management.actions import MayEnable, PluginActions
from host.management.api_call import ApiCallEndpoints
from host.management.app import Build, ManagementApp
from host.management.applier import ConfigApplier
from host.management.auth import ENVIRONMENT_KEY, Authenticator
from host.management.auth_files import AuthFileEndpoints
from host.management.client_keys import ClientKeyEndpoints
from host.management.config_file import ConfigFile
from host.management.config_view import ConfigEndpoints
from host.management.decisions import DecisionEndpoints
from host.management.elsewhere import elsewhere_endpoints
from host.management.logins import LoginEndpoints
from host.management.masks import Masks
from host.management.peers import Peers, for_all_workers, metrics_endpoint
from host.management.plugin_config import SecretFields
from host.management.plugin_pages import PluginPages
from host.management.plugins import PluginEndpoints
from host.management.provider_keys import ProviderKeyEndpoints
from host.management.provider_maps import ProviderMapEndpoints
from host.management.recordings import RecordingEndpoints
from host.management.records import Records
from host.management.rows import Menu
from host.management.service_accounts import ServiceAccountEndpoints
from host.management.settings import SettingEndpoints
from host.management.shared_failures import SharedFailures
from host.management.shared_usage import SharedUsage
from host.management.table import Endpoint, Table
from host.management.usage import UsageEndpoints
from host.observe.logfile import LogFiles
from host.observe.metrics import Metrics
from host.observe.trace import DecisionTrace
from host.recording.run import Recordings
from host.runtime.apply import PluginRegistry
from host.runtime.invoke import Invoker
from host.runtime.plugin_log import PluginLogs
from host.state.store import SharedState
from host.tasks import TaskGroup
from host.upstream import UpstreamClient

_RANDOM: Final = secrets.token_bytes(32)
"""Without any management key only the control socket is served, by this process."""


class CredentialAccess(Protocol):
    """Everything about credentials."""

    @property
    def manager(self) -> CredentialManager: ...

    @property
    def directory(self) -> AuthDirectory: ...

    @property
    def editor(self) -> CredentialEditor: ...

    @property
    def logins(self) -> LoginSessions: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the endpoints work on."""

    file: Path
    config: Callable[[], Config]
    registry: PluginRegistry
    applier: ConfigApplier
    metrics: Metrics
    trace: DecisionTrace
    logs: PluginLogs
    invoker: Invoker
    state: Callable[[], Any]
    """The gateway's, which calls of plugins' pages start with."""
    may_enable: MayEnable
    recordings: Recordings
    credentials: CredentialAccess
    records: Records
    shared: SharedState
    shared_usage: SharedUsage | None
    """Where the records go when nodes share their state."""
    upstream: UpstreamClient
    url: Callable[[], str]
    """Where a browser on this machine reaches the API."""
    refused: Callable[[Config], str | None]
    """Why a configuration must not be in force; None when it may."""
    tasks: TaskGroup
    peers: Peers | None = None
    """The other workers, when several serve the port."""


@dataclass(frozen=True, slots=True)
class Management:
    """The API and what has to be told when plugins or the configuration change."""

    app: ManagementApp
    pages: PluginPages
    log_files: LogFiles

    def follow(self, config: Config) -> None:
        """Another configuration, or another snapshot of plugins, is in force."""
        self.pages.sync()
        self.log_files.follow(config)

    def close(self) -> None:
        """Everything that is open is closed."""
        self.log_files.close()


def management(parts: Parts) -> Management:
    """The whole API. Call it inside the event loop."""
    log_files = LogFiles(worker=parts.peers.number if parts.peers is not None else 1)
    own = endpoints_of(parts, menus=lambda plugin_id: pages.menus(plugin_id), log_files=log_files)
    table = Table(for_all_workers(own, parts.peers))
    pages = PluginPages(
        parts.invoker,
        snapshot=lambda: parts.registry.snapshot,
        state=parts.state,
        native=table.has,
        tasks=parts.tasks,
    )
    authenticator = Authenticator(
        settings=lambda: parts.config().remote_management,
        tasks=parts.tasks,
        environment_key=os.environ.get(ENVIRONMENT_KEY, ""),
        failures=SharedFailures(parts.shared, parts.tasks),
    )
    build = Build(
        commit=os.environ.get("JACKFIELD_COMMIT", "unknown"), date=os.environ.get("JACKFIELD_BUILD_DATE", "unknown")
    )
    app = ManagementApp(table, authenticator, config=parts.config, pages=pages, tasks=parts.tasks, build=build)
    return Management(app, pages, log_files)


def endpoints_of(parts: Parts, *, menus: Callable[[str], Sequence[Menu]], log_files: LogFiles) -> Iterator[Endpoint]:
    """Every endpoint of the host, group by group."""
    actions = PluginActions(
        file=parts.file,
        config=parts.config,
        registry=parts.registry,
        applier=parts.applier,
        metrics=parts.metrics.plugins,
        logs=parts.logs,
        menus=menus,
        may_enable=parts.may_enable,
    )
    yield from PluginEndpoints(actions).endpoints()
    yield from DecisionEndpoints(parts.trace).endpoints()
    yield from RecordingEndpoints(parts.recordings).endpoints()
    known = parts.credentials
    yield from AuthFileEndpoints(known.manager, known.directory, known.editor, state=parts.state).endpoints()
    file = ConfigFile(parts.file, parts.applier, parts.config, refused=parts.refused)
    masks = Masks(lambda: _mask_key(parts), plugin_secrets=partial(_secrets_of_plugin, parts.registry))
    files_of = partial(_files_of_plugin, parts.registry)
    yield from ConfigEndpoints(file, masks, may_enable=parts.may_enable, files_of=files_of).endpoints()
    yield from SettingEndpoints(file, masks).endpoints()
    yield from ClientKeyEndpoints(file, masks).endpoints()
    yield from ProviderKeyEndpoints(file, masks).endpoints()
    yield from ProviderMapEndpoints(file).endpoints()
    usage = UsageEndpoints(
        parts.records,
        known.manager,
        masks,
        state=parts.state,
        files=log_files,
        peers=parts.peers,
        shared=parts.shared_usage,
    )
    yield from usage.endpoints()
    yield from ApiCallEndpoints(parts.upstream, known.manager, parts.config).endpoints()
    yield from ServiceAccountEndpoints(known.editor, plugins=lambda: parts.state().plugins).endpoints()
    yield from elsewhere_endpoints()
    yield from LoginEndpoints(known.logins, parts.peers, url=parts.url).endpoints()
    if parts.peers is not None:
        yield metrics_endpoint(parts.metrics)


def _mask_key(parts: Parts) -> bytes:
    """The same in all workers, over restarts, and known to nobody: what the management key itself is kept as."""
    return (parts.config().remote_management.secret_key or os.environ.get(ENVIRONMENT_KEY, "")).encode() or _RANDOM


def _secrets_of_plugin(registry: PluginRegistry, plugin_id: str, section: Mapping[str, Any]) -> frozenset[str]:
    source = registry.source(plugin_id)
    return SecretFields.of(source.manifest if source is not None else None, section).names


def _files_of_plugin(registry: PluginRegistry, plugin_id: str) -> frozenset[str]:
    source = registry.source(plugin_id)
    return SecretFields.of(source.manifest, {}).files if source is not None else frozenset()

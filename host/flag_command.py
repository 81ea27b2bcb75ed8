"""`jackfield --some-flag`: starts the plugins whose options were given, and no others, asks them, and ends.

They run here, through the ordinary runtime with its permissions and deadlines, whether or not a proxy runs on the same
configuration (spec plugin-abi 7.7).
"""

import asyncio
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import click
from msgspec.structs import replace

from host import control
from host.cli_flags import NATIVE
from host.config.load import ConfigError, load_config
from host.config.model import Config, config_path
from host.credential_parts import CredentialParts
from host.credentials.editor import CredentialError
from host.flags.parse import CommandLine
from host.flags.table import FlagTable, PluginFlag
from host.install.lock import Seals
from host.observe.logs import configure_logs
from host.pipeline.state import GatewayState, build_state
from host.runtime.apply import PluginRegistry
from host.runtime.auth_plugins import provider_names
from host.runtime.bundled import BUNDLED_PACKAGE, bundled_dir
from host.runtime.callback_http import HttpCallbacks, http_settings
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers
from host.runtime.handle import PluginState
from host.runtime.host_summary import host_summary
from host.runtime.invoke import Invoker
from host.runtime.processes import Processes, timings_of
from host.state.local import LocalState
from host.state.opening import StateSetupError, open_state
from host.tasks import TaskGroup
from host.upstream import ClientLimits, UpstreamClient
from pluginabi.errors import AbiError
from pluginabi.payloads.common import CredentialRecord
from pluginabi.payloads.management import CommandLineRequest, CommandLineResponse, FlagValue

METHOD: Final = "command_line.execute"
_EXIT_CODES: Final = range(256)


def run_flags(config_file: str, table: FlagTable, line: CommandLine, *, program: str) -> int:
    """Ask each owner of a given option, by priority, and print what it answers. The first exit code above 0 counts."""
    try:
        config = load_config(config_file).config
    except ConfigError as error:
        click.echo(str(error), err=True)
        return 1
    configure_logs(debug=config.debug, quiet=True)
    try:
        return asyncio.run(_run(Path(config_file), config, table, line, program=program))
    except (StateSetupError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        return 1


async def _run(file: Path, config: Config, table: FlagTable, line: CommandLine, *, program: str) -> int:
    owners = tuple(dict.fromkeys(flag.plugin_id for flag in table.flags.values() if flag.name in line.given))
    async with AsyncExitStack() as stack:
        desk = _Desk(stack, _only(config, owners), owners, shares_state=control.ask(file, "GET", "/plugins") is None)
        await desk.start()
        exit_code = 0
        for plugin_id in owners:
            # Its own options and the host's: what somebody typed for another plugin may be a secret.
            own = [flag for flag in table.flags.values() if flag.plugin_id == plugin_id]
            request = CommandLineRequest(
                program=program,
                args=line.rest,
                config_path=os.path.abspath(file),
                flags={**_native_flags(file), **_values(own, line)},
                triggered_flags=_values((flag for flag in own if flag.name in line.given), line),
                host=host_summary(config),
            )
            code = await desk.ask(plugin_id, request)
            exit_code = exit_code or code
        return exit_code


class _Desk:
    """A small host of its own for the plugins that are asked; all of it ends with `stack`."""

    def __init__(self, stack: AsyncExitStack, config: Config, owners: Sequence[str], *, shares_state: bool) -> None:
        self._stack: Final = stack
        self._config: Final = config
        self._tasks: Final = TaskGroup("command-line")
        stack.push_async_callback(self._tasks.stop)
        # The running proxy owns the file; two writers would take each other's values away.
        self._state = open_state(config) if shares_state or config.state.url else LocalState(None)
        stack.push_async_callback(self._state.stop)
        ca_file = config_path(config, config.upstream_ca_file) if config.upstream_ca_file else None
        upstream = UpstreamClient(limits=ClientLimits(extra_ca_file=ca_file))
        stack.push_async_callback(upstream.close)
        http = HttpCallbacks(upstream, attacher_of=lambda scope: self._gateway.attacher, settings=http_settings(config))
        kv = KvCallbacks(self._state.store, nodes=lambda: self._state.nodes)
        callbacks = HostCallbacks(http=http, kv=kv, tasks=self._tasks)
        self._invoker: Final = Invoker()
        processes = Processes(callbacks=callbacks, tasks=self._tasks, timings=lambda: timings_of(config.plugins))
        stack.push_async_callback(processes.stop)
        self._registry: Final = PluginRegistry(
            carriers=Carriers(callbacks=callbacks, tasks=self._tasks, process=processes),
            callbacks=callbacks,
            invoker=self._invoker,
            tasks=self._tasks,
            bundled_dir=bundled_dir(),
            bundled_package=BUNDLED_PACKAGE,
            needed=lambda config: frozenset(owners),
            check=Seals(Path(config.directory)),
        )
        stack.push_async_callback(self._registry.stop)
        self._credentials: Final = CredentialParts(
            config,
            invoker=self._invoker,
            tasks=self._tasks,
            snapshot=lambda: self._registry.snapshot,
            rebuild=lambda: None,
            reapply=_nothing,
        )
        self._credentials.manager.on_change = None
        callbacks.auth.files = self._credentials.files
        self._gateway: GatewayState

    async def start(self) -> None:
        """Start the plugins; one that does not start is reported when it is asked."""
        await self._state.start()
        await self._credentials.open()
        await self._registry.apply(self._config)
        await self._credentials.follow(self._config)
        self._gateway = build_state(self._config, self._registry.snapshot, manager=self._credentials.manager)

    async def ask(self, plugin_id: str, request: CommandLineRequest) -> int:
        """Print what one plugin answers, and save what it logged in to; its exit code."""
        binding = self._registry.snapshot.binding(plugin_id, METHOD)
        status = self._registry.status(plugin_id)
        if binding is None or status is None or status.state != PluginState.READY:
            reason = (status.reason if status is not None else "") or f"it does not serve {METHOD}"
            click.echo(f"warning: plugin {plugin_id} cannot be asked: {reason}", err=True)
            return 1
        try:
            answer = await self._invoker.call(binding, lambda _: request, None)
        except AbiError as error:
            click.echo(f"warning: plugin {plugin_id} failed: {error}", err=True)
            return 1
        response: CommandLineResponse = answer.value
        _print(response.stdout)
        _print(response.stderr, err=True)
        if response.exit_code != 0:
            return response.exit_code if response.exit_code in _EXIT_CODES else 1
        return await self._save(plugin_id, response.records)

    async def _save(self, plugin_id: str, records: Sequence[CredentialRecord]) -> int:
        """All of the records or none."""
        provider = next(iter(provider_names(self._registry.snapshot.plugins[plugin_id])), "")
        try:
            saved = await self._credentials.editor.save_login(provider, records)
        except CredentialError as error:
            click.echo(f"error: {error}", err=True)
            return 1
        for path in dict.fromkeys(record.path for record in saved):
            click.echo(f"Authentication saved to {path}")
        return 0


async def _nothing() -> None:
    """Nobody waits for further plugins here."""


def _only(config: Config, owners: Collection[str]) -> Config:
    """The configuration with these plugins enabled and no others."""
    sections = {plugin_id: section for plugin_id, section in config.plugins.configs.items() if plugin_id in owners}
    return replace(config, plugins=replace(config.plugins, configs=sections))


def _values(flags: Iterable[PluginFlag], line: CommandLine) -> dict[str, FlagValue]:
    return {
        flag.name: FlagValue(
            name=flag.name,
            type=flag.type,
            value=line.given.get(flag.name, flag.default),
            set=flag.name in line.given,
        )
        for flag in flags
    }


def _native_flags(file: Path) -> dict[str, FlagValue]:
    """Jackfield's own options: without type, never set."""
    values = {"config": str(file)}
    return {name: FlagValue(name=name, type="", value=values.get(name, "false")) for name in NATIVE}


def _print(text: str, *, err: bool = False) -> None:
    if text:
        click.echo(text, nl=not text.endswith("\n"), err=err)

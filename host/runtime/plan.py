"""What should run: one plan per wanted plugin, made from discovery and configuration. Nothing is started here."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from host import VERSION
from host.config.model import Config, PluginSection, config_path
from host.runtime.discover import PluginSource
from host.runtime.policy import EffectivePolicy, effective_policy
from host.runtime.resolve import ResolvedConfig, resolve_config
from pluginabi.frames import HostInfo
from pluginabi.payloads.lifecycle import RegisterRequest

SourceCheck: TypeAlias = Callable[[PluginSource], str | None]
"""Why a plugin's files must not be started, None when they may. Blocks, so it is called in a thread."""


def unchecked(source: PluginSource) -> str | None:
    """The `SourceCheck` that lets everything start."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One plugin as the configuration wants it."""

    source: PluginSource
    policy: EffectivePolicy
    section: PluginSection
    config: ResolvedConfig
    data_dir: Path
    check: SourceCheck = unchecked
    """Asked before each start."""
    hidden_paths: tuple[Path, ...] = ()
    """What no plugin process may read, wherever it lies."""

    @property
    def plugin_id(self) -> str:
        return self.source.plugin_id

    @property
    def bundled(self) -> bool:
        return self.source.origin == "bundled"

    def launch_key(self) -> tuple[Any, ...]:
        """Plans that differ here need a new generation: the process or module would be another one."""
        policy = self.policy
        return (
            self.source,
            policy.carrier,
            tuple(sorted(policy.environment.items())),
            policy.memory_mb,
            policy.open_files,
            policy.max_inflight,
            policy.instances,
            policy.confinement,
            policy.read_paths,
            # The kernel enforces it, and a running process cannot be given what it was denied.
            "network" in policy.permissions,
        )

    def register_key(self) -> tuple[Any, ...]:
        """Plans that differ here need `plugin.reconfigure`. What the rest of a plan says takes effect by itself.

        The text of the section is left out: it also holds the host's own keys, comments and order.
        """
        return (self.config.values, self.policy.permissions)

    def register_request(self) -> RegisterRequest:
        """What `plugin.register` and `plugin.reconfigure` say."""
        return RegisterRequest(
            config=self.config.values,
            config_yaml=self.section.config_yaml,
            permissions=tuple(sorted(self.policy.permissions)),
            host=HostInfo(version=VERSION),
        )


def is_wanted(source: PluginSource, config: Config, needed: Callable[[Config], frozenset[str]]) -> bool:
    """Whether a plugin should run: bundled ones by need, others when they and plugins as a whole are enabled."""
    if source.origin == "bundled":
        return source.plugin_id in needed(config)
    return config.plugins.enabled and section_of(config, source.plugin_id).enabled


def section_of(config: Config, plugin_id: str) -> PluginSection:
    """The plugin's section, or the one a plugin has that is not configured."""
    found = config.plugins.configs.get(plugin_id)
    return found if found is not None else PluginSection(config_yaml="enabled: false\npriority: 0\n")


def make_plan(
    source: PluginSource,
    config: Config,
    *,
    environment: Mapping[str, str] | None = None,
    check: SourceCheck = unchecked,
) -> Plan:
    """The plan for one plugin. Raises PolicyError or UnresolvedValue, whose text is for the operator."""
    section = section_of(config, source.plugin_id)
    return Plan(
        source=source,
        policy=effective_policy(source, config, environment=environment),
        section=section,
        config=resolve_config(
            source.plugin_id,
            section.config,
            config,
            secret_fields=source.manifest.secret_fields,
            environment=environment,
        ),
        data_dir=data_dir_of(config, source.plugin_id),
        check=check,
        hidden_paths=hidden_paths(config),
    )


def hidden_paths(config: Config) -> tuple[Path, ...]:
    """Configuration, credentials, keys, state, and what the plugins keep; every file beside the configuration."""
    places = [config.auth_dir, "plugin-data", config.state.file, config.tls.key]
    found = [Path(config_path(config, place)) for place in places if place]
    folder = Path(config_path(config, "."))
    try:
        found += [Path(entry.path) for entry in os.scandir(folder) if entry.is_file()]
    except OSError:
        pass  # a configuration without a place of its own
    return tuple(sorted(found))


def data_dir_of(config: Config, plugin_id: str) -> Path:
    """Where a plugin may write, beside the configuration file."""
    return Path(config_path(config, "plugin-data")) / plugin_id

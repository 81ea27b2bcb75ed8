"""What a plugin may do: the manifest's wishes, cut down and overridden by the operator's policy."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from host.config.model import Config, PluginPolicy, config_path
from host.config.values import seconds
from host.runtime.confinement import ConfinementMode
from host.runtime.discover import PluginSource
from host.runtime.handle import Inputs
from host.runtime.manifest import Carrier
from host.runtime.projection import parse_inputs
from pluginabi.methods import PERMISSIONS, PLUGIN_METHODS, OnError

BUNDLED_PERMISSIONS: Final = frozenset({"http", "kv"})
"""What first-party plugins get without being granted it, as far as their manifests ask for it."""
_EXECUTOR_PREFIX: Final = "executor."
_UPSTREAM_FIRST_S: Final = 2.0
"""An upstream that says nothing for `timeouts.first-byte` is the upstream's failure, and another credential is tried:
the call of the executor that waits for it must not end before that is known."""

_Value = TypeVar("_Value")


class PolicyError(Exception):
    """The operator's policy for a plugin cannot be followed; the message names the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectivePolicy:
    """The outcome for one plugin. Two equal policies need no change of a running plugin."""

    carrier: Carrier
    remark: str = ""
    """For the operator, shown by `jackfield plugins list`."""
    permissions: frozenset[str]
    wished_permissions: frozenset[str]
    http_hosts: tuple[tuple[str, ...], ...] = ()
    """Lists of patterns, the manifest's and the operator's: a URL's host must match one of each list that there is. No
    list at all, of a bundled plugin: any host."""
    private_hosts: tuple[str, ...] | None = ()
    """Hosts that the operator names, which may lie in this machine and its networks; None: all may."""
    environment: Mapping[str, str] = field(default_factory=dict)
    memory_mb: int | None = None
    max_inflight: int | None = None
    open_files: int | None = None
    instances: int = 1
    confinement: ConfinementMode = "auto"
    read_paths: tuple[Path, ...] = ()
    """What its process may read beside its own."""
    timeouts_s: Mapping[str, float] = field(default_factory=dict)
    """Only what differs from the method table."""
    on_error: Mapping[str, OnError] = field(default_factory=dict)
    """Only what manifest or operator say."""
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Only what the manifest says."""
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0

    def method_timeout_s(self, method: str) -> float | None:
        """The deadline of a call until its `result`."""
        explicit = self.timeouts_s.get(method)
        if explicit is not None:
            return explicit
        timeout_ms = PLUGIN_METHODS[method].timeout_ms
        if timeout_ms is not None:
            return timeout_ms / 1000
        return self.first_byte_timeout_s + _UPSTREAM_FIRST_S if method.startswith(_EXECUTOR_PREFIX) else None

    def method_on_error(self, method: str, preset: Mapping[str, str]) -> OnError:
        """Operator, then manifest, then what the plugin's class presets, then the method table."""
        explicit = self.on_error.get(method)
        if explicit is not None:
            return explicit
        if preset.get(method) == "fail":
            return "fail"
        return PLUGIN_METHODS[method].on_error

    def method_inputs(self, method: str, hello: Mapping[str, Sequence[str]]) -> Inputs:
        """Manifest, then hello, then the method table. Raises ValueError for an unknown word in hello."""
        words: Sequence[str] | None = self.inputs.get(method)
        if words is None:
            words = hello.get(method)
        if words is None:
            words = PLUGIN_METHODS[method].inputs
        return parse_inputs(words)


def effective_policy(
    source: PluginSource, config: Config, *, environment: Mapping[str, str] | None = None
) -> EffectivePolicy:
    """The policy for one plugin under `config`; `environment` is the host's own. Raises PolicyError."""
    manifest = source.manifest
    operator = config.plugins.policy.get(manifest.id, PluginPolicy())
    bundled = source.origin == "bundled"
    wished = frozenset(manifest.permissions)
    granted = frozenset(_known_permissions(manifest.id, operator)) | (BUNDLED_PERMISSIONS if bundled else frozenset())
    carrier, remark = _carrier(source, operator)
    if carrier == "inprocess" and operator.confinement == "required":
        raise PolicyError(
            f"plugins.policy.{manifest.id}.confinement: required, but nothing confines a plugin inside the host;"
            f" set plugins.policy.{manifest.id}.runtime to process"
        )
    return EffectivePolicy(
        carrier=carrier,
        remark=remark,
        permissions=wished & granted,
        wished_permissions=wished,
        http_hosts=_http_hosts(manifest.http_hosts, operator.http_hosts, bundled=bundled),
        private_hosts=None
        if bundled
        else tuple(pattern.lower() for pattern in operator.http_hosts if not _is_anything(pattern)),
        environment=_environment(source, operator, os.environ if environment is None else environment),
        memory_mb=_first(operator.limits.memory_mb, manifest.limits.memory_mb),
        max_inflight=_first(operator.limits.max_inflight, manifest.limits.max_inflight),
        open_files=_first(operator.limits.open_files, manifest.limits.open_files),
        instances=_instances(manifest.id, operator),
        confinement=operator.confinement,
        read_paths=tuple(_read_paths(source, config, operator)),
        timeouts_s=_timeouts_s(manifest.id, manifest.timeouts, operator.timeouts),
        on_error={**manifest.on_error, **_known_methods(manifest.id, "on-error", operator.on_error)},
        inputs={method: tuple(words) for method, words in manifest.inputs.items()},
        first_byte_timeout_s=seconds(config.timeouts.first_byte),
        idle_timeout_s=seconds(config.timeouts.idle),
    )


def host_matches(host: str, port: int | None, patterns: Sequence[str]) -> bool:
    """Whether a URL's host fits one of `patterns`: `example.com`, `*.example.com`, `example.com:8443` or `*`."""
    host = host.lower().rstrip(".")
    return any(_host_fits(host, port, pattern) for pattern in patterns)


def _http_hosts(manifest: Sequence[str], operator: Sequence[str], *, bundled: bool) -> tuple[tuple[str, ...], ...]:
    """The lists that there are. A plugin that names no host, and was given none, may call none."""
    lists = tuple(tuple(pattern.lower() for pattern in hosts) for hosts in (manifest, operator) if hosts)
    return lists if lists or bundled else ((),)


def _is_anything(pattern: str) -> bool:
    return pattern.partition(":")[0] == "*"


def _host_fits(host: str, port: int | None, pattern: str) -> bool:
    name, colon, wanted_port = pattern.rpartition(":")
    if colon and wanted_port.isdigit() and not name.endswith(":"):
        if port != int(wanted_port):
            return False
        pattern = name
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern.strip("[]")


def _carrier(source: PluginSource, operator: PluginPolicy) -> tuple[Carrier, str]:
    """Where the plugin runs, and a remark when that is not where it wants to run."""
    manifest = source.manifest
    if operator.runtime == "inprocess" and not manifest.entry:
        raise PolicyError(f"plugins.policy.{manifest.id}.runtime: inprocess needs an entry in plugin.toml")
    if operator.runtime:
        return operator.runtime, ""
    if manifest.runtime == "inprocess" and source.origin != "bundled":
        return "process", (
            "wants to run inside the host, with all of its rights; it runs as a process until"
            f" plugins.policy.{manifest.id}.runtime says inprocess"
        )
    return manifest.runtime, ""


def _environment(source: PluginSource, operator: PluginPolicy, host: Mapping[str, str]) -> dict[str, str]:
    """Variables that the manifest names and the operator allows, by name (from the host) or with a value."""
    allowed = operator.environment
    values = dict(allowed) if isinstance(allowed, Mapping) else {name: host[name] for name in allowed if name in host}
    return {name: values[name] for name in source.manifest.environment if name in values}


def _timeouts_s(
    plugin_id: str, manifest: Mapping[str, str | int | float], operator: Mapping[str, str | int | float]
) -> dict[str, float]:
    merged = {**manifest, **_known_methods(plugin_id, "timeouts", operator)}
    found: dict[str, float] = {}
    for method, duration in merged.items():
        try:
            found[method] = seconds(duration)
        except ValueError as error:
            raise PolicyError(f"plugins.policy.{plugin_id}.timeouts.{method}: {error}") from None
    return found


def _known_methods(plugin_id: str, key: str, table: Mapping[str, _Value]) -> Mapping[str, _Value]:
    for method in table:
        if method not in PLUGIN_METHODS:
            raise PolicyError(f"plugins.policy.{plugin_id}.{key}: {method!r} is no method")
    return table


def _known_permissions(plugin_id: str, operator: PluginPolicy) -> Sequence[str]:
    for permission in operator.permissions:
        if permission not in PERMISSIONS:
            raise PolicyError(
                f"plugins.policy.{plugin_id}.permissions: {permission!r} is no permission; known: "
                + ", ".join(PERMISSIONS)
            )
    return operator.permissions


def _read_paths(source: PluginSource, config: Config, operator: PluginPolicy) -> Iterator[Path]:
    """What the operator names: in the policy, and for bundled plugins in their own sections."""
    for path in operator.read_paths:
        yield Path(config_path(config, path))
    section = config.plugins.configs.get(source.plugin_id)
    if source.origin == "bundled" and section is not None:
        for item in source.manifest.config:
            value = section.config.get(item.name)
            if item.file and isinstance(value, str) and value:
                file = Path(config_path(config, value))
                # The folder as well: editors replace a file instead of writing into it.
                yield file
                yield file.parent


def _instances(plugin_id: str, operator: PluginPolicy) -> int:
    if operator.instances < 1:
        raise PolicyError(f"plugins.policy.{plugin_id}.instances: at least 1")
    return operator.instances


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)

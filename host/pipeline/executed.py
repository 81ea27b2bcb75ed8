"""Which plugin executes whose credentials, and what is said of those that no plugin executes."""

from collections.abc import Mapping
from dataclasses import replace

from host.credentials.manager import CredentialHealth
from host.credentials.records import Credential
from host.registry.groups import Group
from host.runtime.handle import PluginSnapshot, PluginView


def executor_of(plugins: PluginSnapshot, credential: Credential) -> PluginView | None:
    """The plugin that a credential is for: the one that executes its provider, where there is one."""
    if credential.source_kind == "plugin":
        return plugins.plugins.get(credential.attributes["plugin"])
    return plugins.executor_of_provider(credential.provider)


def is_executed(plugins: PluginSnapshot, credential: Credential) -> bool:
    """Whether a plugin executes the credential's provider, be it up or down."""
    view = executor_of(plugins, credential)
    return view is not None and view.executes


def unserved(plugins: PluginSnapshot, groups: Mapping[str, Group]) -> frozenset[str]:
    """The groups whose credentials no plugin can use."""
    return frozenset(it for it, group in groups.items() if not is_executed(plugins, group.sample))


def no_executor(provider: str) -> str:
    """Why nothing of a provider is served."""
    return f"no plugin that runs executes the provider {provider!r}"


def noted(health: CredentialHealth, plugins: PluginSnapshot, credential: Credential | None) -> CredentialHealth:
    """The health of a credential, with a word on who executes it where nobody does."""
    if credential is None or is_executed(plugins, credential):
        return health
    return replace(health, unavailable=True, status_message=no_executor(credential.provider))

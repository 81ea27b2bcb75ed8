"""Plugins that serve models on their own, without a credential of the operator."""

from collections.abc import Iterator

from host.credentials.records import Credential
from host.runtime.handle import PluginSnapshot, PluginView


def provider_of(view: PluginView) -> str:
    """The provider key a plugin's own executor goes by: its first exact key, else its id."""
    return next(
        (key.strip().lower() for key in view.providers if key.strip() and not key.endswith("*")), view.plugin_id
    )


def plugin_credential(view: PluginView) -> Credential:
    """What stands for a plugin whose executor needs no credential."""
    provider = provider_of(view)
    return Credential(
        id=f"plugin:{view.plugin_id}:{provider}:executor",
        provider=provider,
        label=view.plugin_id,
        source_kind="plugin",
        attributes={"plugin": view.plugin_id},
    )


def plugin_credentials(plugins: PluginSnapshot, configured: set[str]) -> Iterator[Credential]:
    """Plugins that serve models on their own: with models and an executor, and no credential for their provider.

    With `scope = static` also beside credentials; never with `oauth`, which says that a credential is needed.
    """
    for view in plugins.plugins.values():
        scope = view.executor.scope if view.executor is not None else "both"
        alone = scope == "static" or (scope != "oauth" and provider_of(view) not in configured)
        if view.models and view.executes and alone:
            yield plugin_credential(view)

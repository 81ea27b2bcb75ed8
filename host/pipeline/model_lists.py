"""Which models the plugins of a snapshot list, for everybody and for single credentials."""

from collections.abc import Iterator, Mapping
from typing import Final

from host.credentials.records import Credential
from host.registry.groups import Infos
from host.runtime.handle import PluginSnapshot, PluginView
from pluginabi.payloads.common import ModelInfo

SOURCE: Final = "credential_source.next"


class PluginListings:
    """`Listings` over a snapshot of plugins and what they listed for single credentials."""

    def __init__(self, plugins: PluginSnapshot, listed: Mapping[str, Infos]) -> None:
        self._plugins = plugins
        self._listed = listed
        self._known: dict[tuple[str, bool], Infos] = {}

    def of_provider(self, credential: Credential) -> Infos:
        is_plugin, has_secret = credential.source_kind == "plugin", bool(credential.secret)
        key = (credential.attributes["plugin"] if is_plugin else f"provider:{credential.provider}", has_secret)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = tuple(self._models_for(credential, has_secret))
        return found

    def of_credential(self, credential_id: str) -> Infos | None:
        return self._listed.get(credential_id)

    def _models_for(self, credential: Credential, has_secret: bool) -> Iterator[ModelInfo]:
        """What the executor's plugin lists, then what plugins add that only list models for the provider."""
        is_plugin = credential.source_kind == "plugin"
        if is_plugin:
            view = self._plugins.plugins.get(credential.attributes["plugin"])
        else:
            view = self._plugins.executor_of_provider(credential.provider)
        if view is None or (view.executor is not None and view.executor.scope == "static" and has_secret):
            return
        found = {info.id: info for info in view.models}
        if not is_plugin:
            known = {name.lower() for name in found}
            found |= {info.id: info for info in self._added(credential.provider, view) if info.id.lower() not in known}
        yield from found.values()

    def _added(self, provider: str, executor: PluginView) -> Iterator[ModelInfo]:
        for view in self._plugins.plugins.values():
            if view is not executor and not view.executes and SOURCE not in view.capabilities:
                yield from view.models if view.names(provider) else ()


def handed_out_models(plugins: PluginSnapshot) -> Iterator[ModelInfo]:
    """What the source of credentials says it can hand out credentials for, each once."""
    sources = plugins.bindings.get(SOURCE, ())[:1]
    models = {info.id.lower(): info for it in sources for info in reversed(plugins.plugins[it.plugin_id].models)}
    return iter(models.values())

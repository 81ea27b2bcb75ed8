"""Which models the plugins of a snapshot list, for everybody and for single credentials."""

from collections.abc import Mapping

from host.credentials.records import Credential
from host.registry.groups import Infos
from host.runtime.handle import PluginSnapshot


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
            found = self._known[key] = self._models_for(credential, has_secret)
        return found

    def of_credential(self, credential_id: str) -> Infos | None:
        return self._listed.get(credential_id)

    def _models_for(self, credential: Credential, has_secret: bool) -> Infos:
        if credential.source_kind == "plugin":
            view = self._plugins.plugins.get(credential.attributes["plugin"])
        else:
            view = self._plugins.executor_of_provider(credential.provider)
        if view is None or (view.executor is not None and view.executor.scope == "static" and has_secret):
            return ()
        return tuple({info.id: info for info in view.models}.values())

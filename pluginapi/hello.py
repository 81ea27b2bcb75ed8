"""A plugin's hello: constant, independent of any configuration, and exactly what `--describe` prints."""

from pluginabi.frames import Hello
from pluginabi.limits import Limits
from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION
from pluginapi.identity import Identity, identity_of
from pluginapi.plugin import Plugin, capabilities_of, failure_modes_of


def hello_of(plugin_class: type[Plugin], identity: Identity | None = None) -> Hello:
    """What a plugin offers; nothing of it is run. Raises IdentityError when it has no id."""
    who = identity or identity_of(plugin_class)
    return Hello(
        abi=ABI_VERSIONS,
        schema=SCHEMA_VERSION,
        plugin=who.plugin_id,
        version=who.version,
        features=FEATURES,
        capabilities=capabilities_of(plugin_class),
        inputs={method: tuple(words) for method, words in plugin_class.inputs.items()},
        on_error=dict(failure_modes_of(plugin_class)),
        limits=Limits(max_inflight=plugin_class.max_inflight, max_streams=plugin_class.max_streams),
    )

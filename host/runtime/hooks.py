"""The registry of in-process hook implementations: pluggy checks them and keeps them, calling them is our own work."""

import inspect

import pluggy

from pluginapi import Plugin, hookspecs


def new_plugin_manager() -> pluggy.PluginManager:
    """A manager that knows every hook of the contract.

    Only registration is pluggy's: its multicall stops at the first exception and knows neither coroutines nor
    deadlines, so the host calls implementations one by one, in the order of its own priorities.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def register(manager: pluggy.PluginManager, plugin: Plugin, *, name: str) -> None:
    """Register an instance. Raises ValueError with a sentence when a hook's signature does not fit."""
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        where = inspect.getsourcefile(type(plugin)) or type(plugin).__module__
        raise ValueError(f"{where}: {error}") from None


def unregister(manager: pluggy.PluginManager, *, name: str) -> None:
    """Forget an instance; a name that is not registered is fine."""
    if manager.has_plugin(name):
        manager.unregister(name=name)

"""Imports the code of in-process plugins: under a module name of its own with a digest, so that a change loads anew.

A plugin's folder becomes a package that nobody can name by accident. Inside it, `from . import helpers` works, and so
does `import helpers`, as it does when the same plugin runs as a process: its modules get an `__import__` that looks
into the plugin's own folder first. `sys.path` is never touched, so two plugins may both have a `helpers.py`.
"""

import builtins
import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from host.runtime.discover import PluginSource, folder_digest
from pluginapi import Plugin

_PREFIX: Final = "_jackfield_plugin_"


class LoadError(Exception):
    """A plugin's code cannot be loaded; the message says why and where."""


class PluginCode:
    """The loaded code of one generation of one plugin."""

    def __init__(self, plugin_class: type[Plugin], *, module_name: str, package: "_Package | None") -> None:
        self.plugin_class: Final = plugin_class
        self.module_name: Final = module_name
        self._package = package

    def unload(self) -> None:
        """Forget the modules, unless they belong to an installed package. What still runs keeps working."""
        if self._package is not None:
            self._package.remove()


def load_plugin_code(source: PluginSource, *, generation: int) -> PluginCode:
    """Import the entry of `source` and find its class. Runs the plugin's module code. Raises LoadError."""
    module_name, _, attribute = source.manifest.entry.partition(":")
    if source.entry_point:
        return _loaded(source, module_name, attribute, package=None)
    if source.package:
        return _loaded(source, f"{source.package}.{module_name}", attribute, package=None)
    try:
        digest = folder_digest(source.directory)
    except OSError as error:
        raise LoadError(f"cannot be read: {error}") from error
    clean_id = re.sub(r"\W", "_", source.plugin_id)
    package = _Package(f"{_PREFIX}{clean_id}_{digest}_{generation}", source.directory)
    package.install()
    try:
        return _loaded(source, f"{package.name}.{module_name}", attribute, package=package)
    except BaseException:
        package.remove()
        raise


def _loaded(source: PluginSource, module_name: str, attribute: str, *, package: "_Package | None") -> PluginCode:
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # module code is the author's: whatever it raises is the reason
        raise LoadError(f"importing {source.manifest.entry!r} failed: {type(error).__name__}: {error}") from error
    plugin_class = getattr(module, attribute, None)
    if not isinstance(plugin_class, type) or not issubclass(plugin_class, Plugin):
        raise LoadError(f"{source.manifest.entry!r} is no subclass of pluginapi.Plugin")
    if plugin_class.id and plugin_class.id != source.plugin_id:
        raise LoadError(f"the class calls itself {plugin_class.id!r}, plugin.toml {source.plugin_id!r}")
    return PluginCode(plugin_class, module_name=module_name, package=package)


class _Package(MetaPathFinder):
    """A plugin's folder as a package, and the finder for what is in it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name: Final = name
        self._directory: Final = str(directory)
        self._builtins: Final = {**vars(builtins), "__import__": self._import}

    def install(self) -> None:
        module = ModuleType(self.name)
        module.__path__ = [self._directory]
        module.__spec__ = importlib.machinery.ModuleSpec(self.name, None, is_package=True)
        sys.modules[self.name] = module
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in [name for name in sys.modules if name == self.name or name.startswith(f"{self.name}.")]:
            del sys.modules[name]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{self.name}."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._builtins)
        return spec

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """`__import__` for the plugin's modules: a top-level name of its own folder means that file."""
        top = name.partition(".")[0]
        if level == 0 and self._owns(top):
            module = importlib.import_module(f"{self.name}.{name}")
            if not fromlist:
                return sys.modules[f"{self.name}.{top}"]
            for attribute in fromlist:
                if attribute != "*" and not hasattr(module, attribute) and hasattr(module, "__path__"):
                    importlib.import_module(f"{module.__name__}.{attribute}")
            return module
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _owns(self, top: str) -> bool:
        if top in sys.stdlib_module_names:
            return False
        return importlib.machinery.PathFinder.find_spec(top, [self._directory]) is not None


class _Loader(Loader):
    """Executes a module with the plugin's own builtins; everything else is the wrapped loader's work."""

    def __init__(self, inner: Loader, plugin_builtins: dict[str, Any]) -> None:
        self._inner = inner
        self._builtins = plugin_builtins

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._builtins
        if isinstance(self._inner, importlib.machinery.SourceFileLoader):
            # Never from a cached file: those are recognised as stale by size and second only, and a plugin that is
            # edited and reloaded twice in a second must not run the first edit.
            path = self._inner.path
            exec(self._inner.source_to_code(self._inner.get_data(path), path), vars(module))
        else:
            self._inner.exec_module(module)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Tracebacks and inspect ask the loader for the source.
        found: Callable[..., Any] = getattr(self._inner, name)
        return found

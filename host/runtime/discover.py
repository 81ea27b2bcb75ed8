"""Which plugins exist: bundled ones, those in the plugins folder, those installed as packages. Nothing of them runs."""

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from host.config.model import Config, config_path
from host.runtime.manifest import MANIFEST_NAME, Manifest, ManifestError, is_plugin_id, load_manifest

ENTRY_POINT_GROUP: Final = "jackfield.plugins"

Origin: TypeAlias = Literal["bundled", "directory", "entry_point"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginSource:
    """A usable plugin and where it came from."""

    manifest: Manifest
    directory: Path
    origin: Origin
    package: str = ""
    """Import name of the folder when it lies in an importable package (bundled plugins, entry points)."""
    entry_point: str = ""
    """`module:Class` of an entry point that names a class: its own `manifest` is read when it is started."""

    @property
    def plugin_id(self) -> str:
        return self.manifest.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """A plugin whose id an earlier one has already taken."""

    plugin_id: str
    path: str
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenPlugin:
    """A plugin that cannot be used, and why. `plugin_id` is the folder's name when the manifest does not say."""

    plugin_id: str
    path: str
    reason: str
    origin: Origin = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What was found, in order of precedence."""

    found: tuple[PluginSource, ...] = ()
    shadowed: tuple[Shadowed, ...] = ()
    broken: tuple[BrokenPlugin, ...] = ()

    def source(self, plugin_id: str) -> PluginSource | None:
        return next((source for source in self.found if source.plugin_id == plugin_id), None)


def discover(
    bundled_dir: Path | None,
    plugins_dir: Path | None,
    entry_points: Iterable[importlib.metadata.EntryPoint] = (),
    *,
    bundled_package: str = "",
) -> Discovery:
    """Look into `bundled_dir`, then `plugins_dir`, then `entry_points`.

    One real path counts once, the first of an id wins, and a broken plugin is listed with its reason. A folder that
    does not exist holds no plugins. Raises nothing: an unreadable folder is a broken entry.
    """
    search = _Search()
    if bundled_dir is not None:
        search.folder(bundled_dir, "bundled", package=bundled_package)
    if plugins_dir is not None:
        search.folder(plugins_dir, "directory")
    for entry_point in entry_points:
        search.entry_point(entry_point)
    return Discovery(found=tuple(search.found), shadowed=tuple(search.shadowed), broken=tuple(search.broken))


def installed_entry_points() -> Sequence[importlib.metadata.EntryPoint]:
    """The entry points of installed packages in the group `jackfield.plugins`, by name."""
    return sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)


def why_missing(config: Config, plugin_id: str) -> str:
    """What to tell of a configured plugin that was not found: a folder of that name may be there all the same."""
    shown = config.plugins.dir.rstrip("/")
    reason = f"not found in {shown}/"
    directory = Path(config_path(config, shown), plugin_id)
    if not is_plugin_id(plugin_id) or not os.path.isdir(directory):
        return reason
    try:
        found = load_manifest(directory).id
    except FileNotFoundError:
        return f"{reason}: {shown}/{plugin_id} has no {MANIFEST_NAME}"
    except (ManifestError, OSError):
        return reason
    return f"{reason}: {shown}/{plugin_id} holds a plugin with the id {found!r}"


def folder_digest(directory: Path) -> str:
    """A digest over names and contents of a plugin's files; caches and hidden files do not count."""
    digest = hashlib.sha256()
    for path in sorted(_files(directory)):
        content = hashlib.sha256(path.read_bytes()).digest()
        digest.update(str(path.relative_to(directory)).encode() + b"\0" + content)
    return digest.hexdigest()[:16]


class _Search:
    """Collects plugins in order of precedence."""

    def __init__(self) -> None:
        self.found: list[PluginSource] = []
        self.shadowed: list[Shadowed] = []
        self.broken: list[BrokenPlugin] = []
        self._seen_paths: set[str] = set()
        self._owners: dict[str, str] = {}

    def folder(self, folder: Path, origin: Origin, *, package: str = "") -> None:
        try:
            children = sorted(folder.iterdir())
        except FileNotFoundError:
            return
        except OSError as error:
            self.broken.append(BrokenPlugin(plugin_id="", path=str(folder), reason=_os_reason(error), origin=origin))
            return
        for child in children:
            if child.name.startswith((".", "__")):
                continue
            try:
                is_plugin = (child / MANIFEST_NAME).is_file()
            except OSError as error:  # a folder of another user must not keep the others from being found
                self._broken(child.name, child, _os_reason(error), origin)
                continue
            if is_plugin:
                inner = f"{package}.{child.name}" if package and child.name.isidentifier() else ""
                self._plugin(child, origin, package=inner)

    def entry_point(self, point: importlib.metadata.EntryPoint) -> None:
        module, _, attribute = point.value.partition(":")
        directory = self._folder_of_module(module.strip(), point)
        if directory is None:
            return
        if (directory / MANIFEST_NAME).is_file():
            self._plugin(directory, "entry_point", package=module.strip())
        elif not attribute:
            self._broken(point.name, directory, f"the package {module!r} contains no {MANIFEST_NAME}", "entry_point")
        elif not is_plugin_id(point.name):
            self._broken(point.name, directory, f"{point.name!r} is no plugin id", "entry_point")
        else:
            version = point.dist.version if point.dist is not None else "0"
            manifest = Manifest(id=point.name, version=version, runtime="inprocess", entry=point.value.split("[")[0])
            self._add(
                PluginSource(
                    manifest=manifest, directory=directory, origin="entry_point", entry_point=manifest.entry.strip()
                )
            )

    def _folder_of_module(self, module: str, point: importlib.metadata.EntryPoint) -> Path | None:
        """The folder of an entry point's module. Looks, does not import (parents of a dotted name excepted)."""
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            self._broken(point.name, module, f"cannot be found: {error}", "entry_point")
            return None
        if spec is None or spec.origin is None:
            self._broken(point.name, module, f"the module {module!r} cannot be found", "entry_point")
            return None
        return Path(spec.origin).parent

    def _plugin(self, directory: Path, origin: Origin, *, package: str) -> None:
        real_path = os.path.realpath(directory)
        if real_path in self._seen_paths:
            return
        self._seen_paths.add(real_path)
        try:
            manifest = load_manifest(directory)
        except ManifestError as error:
            self._broken(directory.name, directory, str(error), origin)
        except OSError as error:
            self._broken(directory.name, directory, _os_reason(error), origin)
        else:
            self._add(PluginSource(manifest=manifest, directory=directory, origin=origin, package=package))

    def _add(self, source: PluginSource) -> None:
        owner = self._owners.get(source.plugin_id)
        if owner is not None:
            self.shadowed.append(Shadowed(plugin_id=source.plugin_id, path=str(source.directory), by=owner))
            return
        self._owners[source.plugin_id] = str(source.directory)
        self.found.append(source)

    def _broken(self, plugin_id: str, path: Path | str, reason: str, origin: Origin) -> None:
        self.broken.append(BrokenPlugin(plugin_id=plugin_id, path=str(path), reason=reason, origin=origin))


def _files(directory: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__", "node_modules"))]
        for name in names:
            path = Path(root, name)
            if not name.startswith(".") and not name.endswith(".pyc") and path.is_file():
                yield path


def _os_reason(error: OSError) -> str:
    return f"cannot be read: {error.strerror or error}"

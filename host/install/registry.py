"""Registry files: a JSON list of plugins with the archives to install them from, each pinned by its SHA-256.

`{"schema_version": 1, "plugins": [{"id", "name", "description", "author", "repository", …}]}` (spec plugin-abi 8.2),
where an entry says either `url` and `sha256`, or `artifacts` with one of these pairs per version and platform. Fields
nobody knows are ignored, so that a newer registry stays readable; one wrong entry makes the whole registry unusable.
"""

import hashlib
import platform
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from host.install.download import DownloadError, check_url, shown_url
from host.install.versions import is_update
from host.runtime.manifest import is_plugin_id

SCHEMA_VERSION: Final = 1
REGISTRY_BYTES: Final = 4 * 1024 * 1024
ANY_PLATFORM: Final = ("", "any")
_VERSION: Final = re.compile(r"[0-9][0-9A-Za-z.+-]*")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
_PLATFORM: Final = re.compile(r"[a-z0-9]+/[a-z0-9_]+")
_REPOSITORY: Final = re.compile(r"https://github\.com/[A-Za-z0-9][A-Za-z0-9-]*/([A-Za-z0-9._-]+)")
_REQUIRED: Final = ("id", "name", "description", "author", "repository")
_ARCHITECTURES: Final[Mapping[str, str]] = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "AMD64": "amd64"}


class RegistryError(Exception):
    """A registry that cannot be used, or that has not what was asked for; the message says why."""


class Artifact(Struct, frozen=True, kw_only=True):
    """One archive."""

    url: str
    sha256: str
    version: str = ""
    """Absent: the entry's."""
    platform: str = ""
    """`linux/amd64`, `darwin/arm64`, …; absent or `any`: every machine."""
    size: int | None = None


class RegistryPlugin(Struct, frozen=True, kw_only=True):
    """One entry; `artifacts` also holds what the entry says as `url` and `sha256`."""

    id: str = ""
    name: str = ""
    description: str = ""
    author: str = ""
    repository: str = ""
    version: str = ""
    logo: str = ""
    homepage: str = ""
    license: str = ""
    tags: Sequence[str] = ()
    url: str = ""
    sha256: str = ""
    artifacts: Sequence[Artifact] = ()

    def artifact(self, version: str = "", *, here: str = "") -> Artifact:
        """The archive of `version` (default: the entry's, else the newest) for the platform `here`.

        Raises RegistryError when there is none.
        """
        here = here or this_platform()
        wanted = version or self.version or self.newest_version()
        of_version = [artifact for artifact in self.artifacts if artifact.version == wanted]
        for platforms in ((here,), ANY_PLATFORM):
            for artifact in of_version:
                if artifact.platform in platforms:
                    return artifact
        if not self.artifacts:
            raise RegistryError(f"the registry names no archive of {self.id}; get it from {self.repository}")
        if of_version:
            raise RegistryError(f"there is no archive of {self.id} {wanted} for {here}")
        known = ", ".join(sorted({artifact.version for artifact in self.artifacts if artifact.version}))
        raise RegistryError(f"there is no version {wanted!r} of {self.id}; there are: {known}")

    def newest_version(self) -> str:
        """The highest version of the archives; blank when none says its version."""
        versions = [artifact.version for artifact in self.artifacts if artifact.version]
        newest = ""
        for version in versions:
            if not newest or is_update(newest, version):
                newest = version
        return newest


@dataclass(frozen=True, slots=True)
class Source:
    """Where a registry comes from: a URL, or the path of a file."""

    location: str

    @property
    def id(self) -> str:
        """`source-` and 12 hexadecimal digits of the location's SHA-256."""
        return f"source-{hashlib.sha256(self.location.encode()).hexdigest()[:12]}"

    @property
    def name(self) -> str:
        """The URL's host; a file's path."""
        return urlsplit(self.location).hostname or self.location if self.is_url else self.location

    @property
    def is_url(self) -> bool:
        return "://" in self.location

    def fits(self, text: str) -> bool:
        """Whether an operator who writes `text` means this one."""
        return text in (self.id, self.name, self.location)


def sources_of(locations: Iterable[str]) -> tuple[Source, ...]:
    """Trimmed, without blank ones, each once, in order."""
    return tuple(Source(location) for location in dict.fromkeys(text.strip() for text in locations) if location)


def parse_registry(document: bytes) -> tuple[RegistryPlugin, ...]:
    """The entries of a registry, strings trimmed. Raises RegistryError; `plugins[i]: …` names the first bad entry."""
    try:
        content = msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RegistryError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise RegistryError("it is no JSON object")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise RegistryError(f"unsupported schema_version {version!r}; this version of Jackfield reads {SCHEMA_VERSION}")
    items = content.get("plugins")
    if not isinstance(items, list):
        raise RegistryError("`plugins` is no list")
    found: dict[str, RegistryPlugin] = {}
    for index, item in enumerate(items):
        plugin = _Entry(index, _trimmed(item)).read()
        if plugin.id in found:
            raise RegistryError(f"plugins[{index}]: the id {plugin.id!r} was there before")
        found[plugin.id] = plugin
    return tuple(found.values())


def this_platform() -> str:
    """This machine as registries name it."""
    machine = platform.machine()
    return f"{sys.platform}/{_ARCHITECTURES.get(machine, machine)}"


def _trimmed(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list):
        return [_trimmed(item) for item in value]
    if isinstance(value, dict):
        return {key: _trimmed(member) for key, member in value.items()}
    return value


class _Entry:
    """Checks one entry."""

    def __init__(self, index: int, item: Any) -> None:
        self._index = index
        self._item = item

    def read(self) -> RegistryPlugin:
        try:
            plugin = msgspec.convert(self._item, RegistryPlugin)
        except msgspec.ValidationError as error:
            self._fail(str(error).replace("`$.", "`").replace(" - at `$`", ""))
        for name in _REQUIRED:
            if not getattr(plugin, name):
                self._fail(f"`{name}` is missing or blank")
        if not is_plugin_id(plugin.id):
            self._fail(f"{plugin.id!r} is no plugin id")
        self._check_version("version", plugin.version)
        repository = _REPOSITORY.fullmatch(plugin.repository)
        if repository is None or repository[1].endswith(".git") or repository[1] in (".", ".."):
            self._fail("`repository` has to be https://github.com/OWNER/NAME and nothing more")
        if bool(plugin.url) != bool(plugin.sha256):
            self._fail("`url` and `sha256` belong together")
        own = [Artifact(url=plugin.url, sha256=plugin.sha256)] if plugin.url else []
        artifacts = [self._checked(artifact, plugin) for artifact in (*own, *plugin.artifacts)]
        self._check_twins(artifacts)
        return replace(plugin, artifacts=tuple(artifacts))

    def _checked(self, artifact: Artifact, plugin: RegistryPlugin) -> Artifact:
        self._check_version("artifacts: version", artifact.version)
        if _SHA256.fullmatch(artifact.sha256) is None:
            self._fail(f"{artifact.sha256!r} is no SHA-256 in hexadecimal")
        if artifact.platform not in ANY_PLATFORM and _PLATFORM.fullmatch(artifact.platform) is None:
            self._fail(f"{artifact.platform!r} is no platform like linux/amd64")
        if artifact.size is not None and artifact.size <= 0:
            self._fail("`size` is a number of bytes above 0")
        try:
            check_url(artifact.url)
        except DownloadError as error:
            self._fail(str(error))
        return replace(artifact, version=artifact.version or plugin.version, sha256=artifact.sha256.lower())

    def _check_version(self, name: str, version: str) -> None:
        if version and _VERSION.fullmatch(version) is None:
            self._fail(f"`{name}` {version!r} has to begin with a digit, without a leading v")

    def _check_twins(self, artifacts: Sequence[Artifact]) -> None:
        seen: set[tuple[str, str]] = set()
        for artifact in artifacts:
            key = (artifact.version, "" if artifact.platform in ANY_PLATFORM else artifact.platform)
            if key in seen:
                self._fail(f"two archives of version {artifact.version!r} for {artifact.platform or 'any'} platform")
            seen.add(key)

    def _fail(self, problem: str) -> NoReturn:
        raise RegistryError(f"plugins[{self._index}]: {problem}")


def described(source: Source) -> str:
    """A source in a message: its id and where it lies."""
    return f"{source.id} ({shown_url(source.location) if source.is_url else source.location})"

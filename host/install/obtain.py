"""From what an operator wrote (a path, a URL, an id) to an archive on disk whose digest is the expected one."""

import asyncio
import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from host.install.archive import ArchiveError, ArchiveLimits
from host.install.download import DownloadError, DownloadSettings, check_url, download, shown_url
from host.install.registry import (
    REGISTRY_BYTES,
    Artifact,
    RegistryError,
    RegistryPlugin,
    Source,
    described,
    parse_registry,
)
from host.runtime.manifest import is_plugin_id

REGISTRY_TIMEOUT_S: Final = 30.0
_CHUNK_BYTES: Final = 1024 * 1024
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Exactly one of `path`, `url` and `plugin_id` is set."""

    path: Path | None = None
    url: str = ""
    plugin_id: str = ""
    version: str = ""
    """Of `plugin_id`; blank: whatever the registry offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Obtained:
    """An archive in a place of our own, its digest checked."""

    archive: Path
    sha256: str
    source: str
    """Path or URL, as it may be shown and written down."""
    registry: str = ""
    plugin_id: str = ""
    version: str = ""
    """What the registry says the archive contains."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What several registries offer, and what is wrong with those that offer nothing."""

    found: tuple[tuple[Source, RegistryPlugin], ...]
    errors: tuple[tuple[Source, str], ...]


def wanted(text: str) -> Wanted:
    """What `text` means: a URL, an existing or obvious file, otherwise `ID` or `ID@VERSION`. Raises RegistryError."""
    text = text.strip()
    if "://" in text:
        return Wanted(url=text)
    path = Path(text).expanduser()
    if path.is_file() or "/" in text or path.suffix in (".zip", ".whl"):
        return Wanted(path=path)
    plugin_id, _, version = text.partition("@")
    if not is_plugin_id(plugin_id):
        raise RegistryError(f"{text!r} is neither an archive (PATH or URL) nor a plugin's ID")
    return Wanted(plugin_id=plugin_id, version=version.removeprefix("v"))


def checked_sha256(text: str) -> str:
    """`text`, with or without `sha256:`, as 64 lower-case digits. Raises ArchiveError."""
    digits = text.strip().removeprefix("sha256:")
    if _SHA256.fullmatch(digits) is None:
        raise ArchiveError(f"{text!r} is no SHA-256: 64 hexadecimal digits")
    return digits.lower()


def obtain_file(path: Path, into: Path, *, sha256: str = "") -> Obtained:
    """Copy a local archive, so that what is checked is what is unpacked. Blocks. Raises ArchiveError and OSError."""
    if path.is_dir():
        raise ArchiveError(f"{path} is a folder: copy it into the plugins folder, or make a zip of it")
    with open(path, "rb") as source, _Intake(into) as intake:
        while chunk := source.read(_CHUNK_BYTES):
            intake.write(chunk)
            if intake.received > ArchiveLimits().archive_bytes:
                raise ArchiveError(f"{path} is larger than {ArchiveLimits().archive_bytes} bytes")
    return Obtained(archive=into, sha256=intake.check(sha256, str(path)), source=str(path.absolute()))


async def obtain_url(url: str, into: Path, *, sha256: str, settings: DownloadSettings) -> Obtained:
    """Download an archive that has to have this digest. Raises DownloadError, ArchiveError and OSError."""
    if not sha256:
        raise DownloadError(f"--sha256 is missing: without it nobody knows what {shown_url(url)} will send")
    with _Intake(into) as intake:
        await download(url, max_bytes=ArchiveLimits().archive_bytes, settings=settings, write=intake.write)
    return Obtained(archive=into, sha256=intake.check(sha256, shown_url(url)), source=shown_url(url))


async def obtain_artifact(
    source: Source, plugin: RegistryPlugin, artifact: Artifact, into: Path, *, sha256: str, settings: DownloadSettings
) -> Obtained:
    """Download what a registry names; a digest of the operator's has to agree. Raises as `obtain_url`."""
    if check_url(artifact.url) and source.is_url and not check_url(source.location):
        raise DownloadError(f"{described(source)} sends for an archive on this machine: {shown_url(artifact.url)}")
    if sha256 and not hmac.compare_digest(sha256, artifact.sha256):
        raise ArchiveError(f"--sha256 differs from what {described(source)} says: {artifact.sha256}")
    limit = artifact.size or ArchiveLimits().archive_bytes
    with _Intake(into) as intake:
        await download(artifact.url, max_bytes=limit, settings=settings, write=intake.write)
    return Obtained(
        archive=into,
        sha256=intake.check(artifact.sha256, shown_url(artifact.url)),
        source=shown_url(artifact.url),
        registry=source.location,
        plugin_id=plugin.id,
        version=artifact.version,
    )


async def load_registry(source: Source, *, settings: DownloadSettings) -> tuple[RegistryPlugin, ...]:
    """The entries of one registry. Raises RegistryError, which names the source, whatever went wrong."""
    document = bytearray()
    try:
        if source.is_url:
            await download(source.location, max_bytes=REGISTRY_BYTES, settings=settings, write=document.extend)
        else:
            document += _registry_file(Path(source.location))
        return parse_registry(bytes(document))
    except (DownloadError, RegistryError, OSError) as error:
        raise RegistryError(f"{described(source)}: {error}") from error


async def load_registries(sources: Sequence[Source], *, settings: DownloadSettings) -> Listing:
    """All of them at once; one that fails does not hide the others."""
    outcomes = await asyncio.gather(
        *(load_registry(source, settings=settings) for source in sources), return_exceptions=True
    )
    found: list[tuple[Source, RegistryPlugin]] = []
    errors: list[tuple[Source, str]] = []
    for source, outcome in zip(sources, outcomes, strict=True):
        if isinstance(outcome, RegistryError):
            errors.append((source, str(outcome)))
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            found += [(source, plugin) for plugin in outcome]
    return Listing(tuple(found), tuple(errors))


def find_plugin(listing: Listing, plugin_id: str) -> tuple[Source, RegistryPlugin]:
    """The one entry of that id. Raises RegistryError: nobody has it, or several do and none was named."""
    matches = [(source, plugin) for source, plugin in listing.found if plugin.id == plugin_id]
    if len(matches) == 1:
        return matches[0]
    if matches:
        places = "; ".join(described(source) for source, _ in matches)
        raise RegistryError(f"{plugin_id} is in several registries, name one with --source: {places}")
    failed = "".join(f"\n{message}" for _, message in listing.errors)
    raise RegistryError(f"no registry has a plugin {plugin_id!r}{failed}")


def _registry_file(path: Path) -> bytes:
    with open(path, "rb") as file:
        document = file.read(REGISTRY_BYTES + 1)
    if len(document) > REGISTRY_BYTES:
        raise RegistryError(f"it is larger than {REGISTRY_BYTES} bytes")
    return document


class _Intake:
    """Writes an archive to disk, counting and hashing it on the way."""

    def __init__(self, path: Path) -> None:
        self.received = 0
        self._path = path
        self._digest = hashlib.sha256()
        self._file: BinaryIO

    def __enter__(self) -> "_Intake":
        self._file = open(self._path, "xb")  # closed by __exit__
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        self.received += len(chunk)
        self._digest.update(chunk)
        self._file.write(chunk)

    def check(self, expected: str, name: str) -> str:
        """The digest of what was written. Raises ArchiveError when it is not the expected one."""
        found = self._digest.hexdigest()
        if expected and not hmac.compare_digest(found, expected):
            raise ArchiveError(f"{name} is not what was expected: its SHA-256 is {found}, not {expected}")
        return found

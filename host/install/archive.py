"""Zip files and wheels: which entries are acceptable, and their extraction into a fresh folder.

Everything in an archive is hostile until checked: names are looked at before anything is written, sizes are counted
while it is written, and what is written are plain files and folders only. Nothing is executed or imported.

A zip holds one `plugin.toml`, at its top or in the one folder that holds everything else. A wheel holds it as package
data (where an entry point of the group `jackfield.plugins` finds it when the wheel is installed with pip); the package
becomes the plugin's folder, the wheel's own records are left out.
"""

import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from host.install.tree import Tree, scan
from host.runtime.manifest import MANIFEST_NAME, Manifest, ManifestError, load_manifest

MIB: Final = 1024 * 1024
_CHUNK_BYTES: Final = 256 * 1024
_END_SIGNATURE: Final = b"PK\x05\x06"
_END_BYTES: Final = 22
_MAX_COMMENT_BYTES: Final = 65535
_ZIP64_LOCATOR_SIGNATURE: Final = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES: Final = 20
_ENCRYPTED_FLAGS: Final = 0x01 | 0x20 | 0x40
_LEFT_OUT: Final = ("__MACOSX", "__pycache__", ".DS_Store")
"""What tools leave in archives; compiled Python would be removed before each start anyway."""
_OWN_DISTRIBUTIONS: Final = frozenset({"jackfield", "jackfield-pluginapi"})
_RECORDS_BYTES: Final = MIB

Parts: TypeAlias = tuple[str, ...]


class ArchiveError(Exception):
    """The archive is refused; the message says which entry and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may contain. Bytes are counted while they are written, whatever the archive says about them."""

    archive_bytes: int = 256 * MIB
    listing_bytes: int = 4 * MIB
    """The archive's own list of its entries, which has to be read whole."""
    files: int = 5000
    file_bytes: int = 256 * MIB
    total_bytes: int = 512 * MIB
    ratio: int = 200
    """How many times larger than its compressed form a file may be, once it is above `ratio_free_bytes`."""
    ratio_free_bytes: int = MIB
    depth: int = 32
    part_bytes: int = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A plugin in a folder, as it came out of an archive."""

    manifest: Manifest
    tree: Tree
    total_bytes: int
    requires: tuple[str, ...] = ()
    """Other packages a wheel says it needs; nothing installs them."""
    tags: tuple[str, ...] = ()
    """What a wheel says it was built for, when that is not every machine."""


@dataclass(frozen=True, slots=True)
class _Entry:
    info: zipfile.ZipInfo
    parts: Parts
    is_folder: bool

    @property
    def name(self) -> str:
        return "/".join(self.parts)


@dataclass(slots=True)
class _Names:
    """The names seen so far, so that no two of them are the same file on any system."""

    spelling: dict[Parts, Parts] = field(default_factory=dict)
    files: set[Parts] = field(default_factory=set)
    folders: set[Parts] = field(default_factory=set)

    def add(self, entry: _Entry) -> None:
        for length in range(1, len(entry.parts) + 1):
            part = entry.parts[:length]
            key = tuple(_folded(name) for name in part)
            if self.spelling.setdefault(key, part) != part:
                raise ArchiveError(f"{entry.name!r} and {'/'.join(self.spelling[key])!r} differ in case only")
            is_file = length == len(entry.parts) and not entry.is_folder
            if key in self.files or (is_file and key in self.folders):
                raise ArchiveError(f"{'/'.join(part)!r} is in the archive twice")
            if is_file:
                self.files.add(key)
            else:
                self.folders.add(key)


_DEFAULT_LIMITS: Final = ArchiveLimits()


def unpack(archive: Path, into: Path, *, limits: ArchiveLimits = _DEFAULT_LIMITS) -> Unpacked:
    """Extract the plugin of `archive` into `into`, an existing empty folder that nobody else writes to. Blocks.

    Raises ArchiveError, also for a `plugin.toml` that cannot be used, and OSError. What was written until then stays.
    """
    try:
        with open(archive, "rb") as file:
            _check_frame(file, limits)
            with zipfile.ZipFile(file) as opened:
                return _unpack(opened, into, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeError, ValueError) as error:
        raise ArchiveError(f"it is no intact zip file: {error}") from None


def _check_frame(file: BinaryIO, limits: ArchiveLimits) -> None:
    """Refuse what is too large to be looked at before the library reads the list of entries into memory."""
    size = file.seek(0, 2)
    if size > limits.archive_bytes:
        raise ArchiveError(f"it is larger than {limits.archive_bytes} bytes")
    tail_start = max(0, size - _END_BYTES - _MAX_COMMENT_BYTES)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise ArchiveError("it is no zip file")
    before = tail[max(0, at - _ZIP64_LOCATOR_BYTES) : at]
    if before.startswith(_ZIP64_LOCATOR_SIGNATURE):
        raise ArchiveError("it is a zip64 file, which no plugin needs")
    if int.from_bytes(tail[at + 12 : at + 16], "little") > limits.listing_bytes:
        raise ArchiveError(f"its list of entries is larger than {limits.listing_bytes} bytes")


def _unpack(opened: zipfile.ZipFile, into: Path, limits: ArchiveLimits) -> Unpacked:
    entries = _checked_entries(opened, limits)
    home = _home_of(entries)
    is_wheel = any(len(entry.parts) == 2 and _is_record_of_wheel(entry, "WHEEL") for entry in entries)
    kept = _of_wheel(entries, home) if is_wheel else _of_zip(entries, home)
    total_bytes = 0
    for entry in kept:
        total_bytes += _extract(opened, entry, into, home, limits=limits, already_bytes=total_bytes)
    try:
        manifest = load_manifest(into)
    except ManifestError as error:
        where = f"{MANIFEST_NAME}:{error.line}" if error.line is not None else MANIFEST_NAME
        raise ArchiveError(f"{where}: {error.problem}") from None
    return Unpacked(
        manifest=manifest,
        tree=scan(into),
        total_bytes=total_bytes,
        requires=_requirements(opened, entries) if is_wheel else (),
        tags=_tags(opened, entries) if is_wheel else (),
    )


# -- which entries are acceptable


def _checked_entries(opened: zipfile.ZipFile, limits: ArchiveLimits) -> list[_Entry]:
    infos = opened.infolist()
    if len(infos) > limits.files:
        raise ArchiveError(f"it has more than {limits.files} entries")
    names = _Names()
    entries = []
    for info in infos:
        entry = _checked(info, limits)
        names.add(entry)
        if not set(entry.parts) & set(_LEFT_OUT):
            entries.append(entry)
    return entries


def _checked(info: zipfile.ZipInfo, limits: ArchiveLimits) -> _Entry:
    # The library cuts `filename` at a NUL; what the archive really says is here.
    name = info.orig_filename
    parts = _checked_parts(name, limits)
    is_folder = name.endswith("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
        raise ArchiveError(f"{name!r} is no plain {'folder' if is_folder else 'file'} (links and devices are refused)")
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise ArchiveError(f"{name!r} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(f"{name!r} is compressed by a method other than deflate")
    if is_folder and info.file_size:
        raise ArchiveError(f"{name!r} is a folder with content of its own")
    if info.file_size > limits.file_bytes:
        raise ArchiveError(f"{name!r} is larger than {limits.file_bytes} bytes")
    return _Entry(info, parts, is_folder)


def _checked_parts(name: str, limits: ArchiveLimits) -> Parts:
    if "\\" in name:
        raise ArchiveError(f"{name!r} contains a backslash")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"{name!r} is an absolute path")
    parts = tuple(name.removesuffix("/").split("/"))
    if len(parts) > limits.depth:
        raise ArchiveError(f"{name!r} lies more than {limits.depth} folders deep")
    for part in parts:
        if part in ("", ".", ".."):
            raise ArchiveError(f"{name!r} is no plain path below the archive's top")
        if part.endswith((".", " ")) or any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in part):
            raise ArchiveError(f"{name!r} contains characters that are not visible")
        if len(part.encode()) > limits.part_bytes:
            raise ArchiveError(f"{name[:80]!r}… has a name of more than {limits.part_bytes} bytes")
    return parts


def _folded(part: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFKC", part).casefold())


# -- where the plugin is


def _home_of(entries: Iterable[_Entry]) -> Parts:
    """The folder of the only `plugin.toml`."""
    found = [entry for entry in entries if not entry.is_folder and _folded(entry.parts[-1]) == MANIFEST_NAME]
    if not found:
        raise ArchiveError(f"it contains no {MANIFEST_NAME}")
    if len(found) > 1:
        raise ArchiveError(f"it contains several {MANIFEST_NAME}: {', '.join(entry.name for entry in found[:5])}")
    if found[0].parts[-1] != MANIFEST_NAME:
        raise ArchiveError(f"{found[0].name!r} has to be spelled {MANIFEST_NAME}")
    return found[0].parts[:-1]


def _of_zip(entries: Sequence[_Entry], home: Parts) -> list[_Entry]:
    if len(home) > 1:
        raise ArchiveError(f"{MANIFEST_NAME} lies in {'/'.join(home)}; it belongs at the archive's top")
    outside = next((entry.name for entry in entries if entry.parts[: len(home)] != home), None)
    if outside is not None:
        raise ArchiveError(f"{MANIFEST_NAME} lies in {home[0]!r}, but {outside!r} does not")
    return [entry for entry in entries if not entry.is_folder]


def _of_wheel(entries: Sequence[_Entry], home: Parts) -> list[_Entry]:
    if not home:
        raise ArchiveError(f"it is a wheel, and {MANIFEST_NAME} lies in no package of it")
    kept = []
    for entry in entries:
        if entry.is_folder or entry.parts[0].endswith(".dist-info"):
            continue
        if entry.parts[: len(home)] == home:
            kept.append(entry)
        elif entry.parts != (*home[: len(entry.parts) - 1], "__init__.py"):
            raise ArchiveError(
                f"{entry.name!r} lies outside of {'/'.join(home)}, the plugin's package, and would be missing; "
                "put everything into the one package"
            )
    return kept


def _is_record_of_wheel(entry: _Entry, name: str) -> bool:
    return entry.parts[0].endswith(".dist-info") and entry.parts[1:] == (name,)


# -- extraction


def _extract(
    opened: zipfile.ZipFile, entry: _Entry, into: Path, home: Parts, *, limits: ArchiveLimits, already_bytes: int
) -> int:
    """Write one file; how many bytes it has."""
    target = into.joinpath(*entry.parts[len(home) :])
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    written = 0
    # x: never through something that lies there already.
    with opened.open(entry.info) as source, open(target, "xb") as out:
        while chunk := source.read(_CHUNK_BYTES):
            written += len(chunk)
            _check_growth(entry, written, already_bytes, limits)
            out.write(chunk)
    mode = stat.S_IMODE(entry.info.external_attr >> 16)
    # Tools that know no modes write none; then nobody can tell which file is the program.
    target.chmod(0o755 if mode == 0 or mode & 0o111 else 0o644)
    return written


def _check_growth(entry: _Entry, written: int, already_bytes: int, limits: ArchiveLimits) -> None:
    if written > limits.file_bytes:
        raise ArchiveError(f"{entry.name!r} is larger than {limits.file_bytes} bytes")
    if already_bytes + written > limits.total_bytes:
        raise ArchiveError(f"its files are larger than {limits.total_bytes} bytes together")
    if written > limits.ratio_free_bytes and written > limits.ratio * max(1, entry.info.compress_size):
        raise ArchiveError(f"{entry.name!r} unpacks to more than {limits.ratio} times its size")


# -- a wheel's records


def _requirements(opened: zipfile.ZipFile, entries: Iterable[_Entry]) -> tuple[str, ...]:
    wanted = [text for text in _record_fields(opened, entries, "METADATA", "Requires-Dist") if "extra ==" not in text]
    return tuple(text for text in wanted if requirement_name(text) not in _OWN_DISTRIBUTIONS)


def requirement_name(requirement: str) -> str:
    """The normalised package name of `Some_Package[x] >= 1; python_version < "3.12"`."""
    found = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
    return re.sub(r"[-_.]+", "-", found[1]).lower() if found else ""


def _tags(opened: zipfile.ZipFile, entries: Iterable[_Entry]) -> tuple[str, ...]:
    tags = _record_fields(opened, entries, "WHEEL", "Tag")
    return tuple(tag for tag in tags if not tag.endswith("-none-any"))


def _record_fields(opened: zipfile.ZipFile, entries: Iterable[_Entry], record: str, name: str) -> list[str]:
    entry = next((entry for entry in entries if _is_record_of_wheel(entry, record)), None)
    if entry is None:
        return []
    with opened.open(entry.info) as file:
        headers = BytesHeaderParser().parsebytes(file.read(_RECORDS_BYTES))
    return [str(value) for value in headers.get_all(name, [])]

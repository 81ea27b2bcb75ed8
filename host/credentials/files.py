"""Credential files on disk: reading, atomic writing with mode 0600, changing members while all others keep their bytes.

Everything here blocks; callers on the event loop go through a thread.
"""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw

SUFFIX: Final = ".json"
MAX_FILE_BYTES: Final = 1024 * 1024
FILE_MODE: Final = 0o600
DIRECTORY_MODE: Final = 0o700


class Overtaken(Exception):
    """Somebody else has written a file since it was read."""


class InvalidName(Exception):
    """A name is no name of a credential file; the message is for the caller."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """One file as it was read: its members, or why there are none."""

    path: str
    digest: bytes
    members: Mapping[str, Any] | None
    problem: str = ""


def checked_name(name: str) -> str:
    """`name` as the plain name of a credential file. Raises InvalidName: no separators, no drive, no hidden file."""
    plain = name.strip()
    if (
        not plain
        or "/" in plain
        or "\\" in plain
        or not plain.isprintable()
        or plain[1:2] == ":"
        or plain.startswith(".")
    ):
        raise InvalidName("invalid auth file name")
    if not plain.lower().endswith(SUFFIX):
        raise InvalidName("auth file name must end with .json")
    return plain


def is_credential_file(path: str) -> bool:
    """Whether a path has the name of a credential file; hidden ones are somebody's drafts."""
    name = os.path.basename(path)
    if not name.lower().endswith(SUFFIX) or name.startswith("."):
        return False
    try:
        path.encode()
    except UnicodeEncodeError:
        return False  # no text: it could not be named in any listing
    return True


def prepare_directory(directory: str) -> None:
    """Make the auth directory where it is missing. Raises OSError when it is no directory, or cannot be read."""
    try:
        # Another worker may be making it in this moment.
        os.makedirs(directory, mode=DIRECTORY_MODE, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{directory} is no directory") from None
    os.scandir(directory).close()


def scan(directory: str, *, subfolders: bool = False) -> Iterator[str]:
    """The paths of the credential files of a directory, sorted; none when it does not exist. Those below it only with
    `subfolders`: not of hidden folders, nor of linked ones, which could lead round in a circle. Raises OSError."""
    try:
        with os.scandir(directory) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    names = [entry.path for entry in found if is_credential_file(entry.name) and _may_be_file(entry)]
    if subfolders:
        for entry in found:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                names += scan_below(entry.path)
    yield from sorted(names)


def _may_be_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link of which nobody can say: reading it says why it cannot be used."""
    try:
        return entry.is_file()
    except OSError:
        return True


def scan_below(folder: str) -> list[str]:
    """As `scan` with `subfolders`, of a folder that may be gone or not be readable: then there are none."""
    try:
        return list(scan(folder, subfolders=True))
    except OSError:
        return []


def read_bytes(path: str) -> bytes | None:
    """The bytes of a file, one more than allowed at most; None when there is no regular file. Raises other OSError."""
    try:
        # Without blocking: whoever puts a pipe there must not stop the gateway.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_FILE_BYTES + 1)


def present(path: str) -> bytes:
    """As `read_bytes`, of a file that has to be there. Raises FileNotFoundError, and other OSError."""
    found = read_bytes(path)
    if found is None:
        raise FileNotFoundError(path)
    return found


def read(path: str) -> FileContent | None:
    """The content of a file; None when there is none. What cannot be used is content with a problem."""
    try:
        data = read_bytes(path)
    except OSError as error:
        return FileContent(path, b"", None, f"cannot be read: {error.strerror}")
    return content_of(path, data) if data is not None else None


def read_all(directory: str, *, subfolders: bool) -> dict[str, FileContent]:
    """The content of every file of a directory, which is made where it is missing. Raises OSError."""
    prepare_directory(directory)
    found = (read(path) for path in scan(directory, subfolders=subfolders))
    return {content.path: content for content in found if content is not None}


def read_some(paths: Sequence[str]) -> dict[str, FileContent | None]:
    """As `read`, for each of these."""
    return {path: read(path) for path in paths}


def content_of(path: str, data: bytes) -> FileContent:
    """The content that `data` would be."""
    digest = hashlib.sha256(data).digest()
    if len(data) > MAX_FILE_BYTES:
        return FileContent(path, digest, None, f"is larger than {MAX_FILE_BYTES} bytes")
    if not data.strip():
        return FileContent(path, digest, None, "is empty")
    try:
        return FileContent(path, digest, msgspec.json.decode(data, type=dict[str, Any]))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return FileContent(path, digest, None, f"is no JSON object: {error}")


def write(path: str, data: bytes, *, over: bytes | None = None) -> bool:
    """Write a file, whole or not at all; False when it already says the same and was left alone. Raises OSError.

    The content goes into a temporary file in the same directory, to disk, and then takes the file's name. `over`: what
    the file has to say until then. Raises Overtaken when it does not: another process writes it too, or an editor.
    """
    target = os.path.realpath(path)
    if _says(target, data):
        return False
    directory = os.path.dirname(target)
    os.makedirs(directory, mode=DIRECTORY_MODE, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{os.path.basename(target)}.")
    try:
        os.fchmod(descriptor, FILE_MODE)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if over is not None and read_bytes(target) != over:
            raise Overtaken(path)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_directory(directory)
    return True


def _says(path: str, data: bytes) -> bool:
    """Whether a file holds the same JSON; its mode must be right too."""
    try:
        if os.stat(path).st_mode & 0o777 != FILE_MODE:
            return False
        known = Path(path).read_bytes()
    except OSError:
        return False
    if known == data:
        return True
    try:
        return bool(msgspec.json.decode(known) == msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def _sync_directory(directory: str) -> None:
    """Make the new name itself survive a power cut, where the file system can do that: the file is there already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: str) -> bool:
    """Delete a file; False when it was gone already. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def render(members: Mapping[str, Any]) -> bytes:
    """The text of a file."""
    return msgspec.json.format(msgspec.json.encode(members), indent=2) + b"\n"


_MEMBERS: Final = msgspec.json.Decoder(dict[str, Raw])


def with_members(data: bytes, changes: Mapping[str, Any], *, removed: Sequence[str] = ()) -> bytes:
    """The text of a file with some top-level members set or removed; all others keep their bytes, numbers included.

    Raises msgspec.DecodeError when `data` is no JSON object.
    """
    members = _members_of(data)
    for name in removed:
        members.pop(name, None)
    for name, value in changes.items():
        members[name] = value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))
    return render(members)


def with_value(data: bytes, path: Sequence[str], value: Any) -> bytes:
    """The text of a file with the value at a path set; what is no object on the way is replaced by one.

    Raises msgspec.DecodeError when `data` is no JSON object.
    """
    return render(_set(_members_of(data), path, value))


def _members_of(data: bytes) -> dict[str, Raw]:
    try:
        return _MEMBERS.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None


def _set(members: dict[str, Raw], path: Sequence[str], value: Any) -> dict[str, Raw]:
    name, rest = path[0], path[1:]
    if rest:
        try:
            inner = _MEMBERS.decode(members.get(name, Raw(b"{}")))
        except msgspec.DecodeError:
            inner = {}
        value = _set(inner, rest, value)
    members[name] = value if isinstance(value, Raw) else Raw(msgspec.json.encode(value))
    return members

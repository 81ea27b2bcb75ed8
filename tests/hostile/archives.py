"""Archives that try to leave the folder they are unpacked into."""

import io
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from host.install.archive import ArchiveError, unpack

_MANIFEST: Final = 'id = "evil"\nversion = "1.0.0"\ncommand = ["sh", "x"]\n'


def _entry(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    # `ZipInfo` cleans a name up; the archive is to have it as it is.
    info.filename = name
    info.create_system = 3
    info.external_attr = mode << 16
    return info, content


ARCHIVES: Final[Mapping[str, Callable[[], tuple[zipfile.ZipInfo, bytes]]]] = {
    "an entry above the folder": lambda: _entry("evil/../../escaped"),
    "an absolute entry": lambda: _entry("/tmp/jackfield-escaped"),
    "an entry with backslashes": lambda: _entry("evil\\..\\..\\escaped"),
    "an entry of another drive": lambda: _entry("C:/escaped"),
    "a symbolic link": lambda: _entry("evil/link", b"/etc/shadow", stat.S_IFLNK | 0o777),
    "a device": lambda: _entry("evil/disk", b"", stat.S_IFBLK | 0o600),
    "a named pipe": lambda: _entry("evil/pipe", b"", stat.S_IFIFO | 0o600),
    "an entry that is two in other letters": lambda: _entry("EVIL/PLUGIN.TOML", b'id = "other"'),
    "a bomb": lambda: _entry("evil/zeros", bytes(400 * 1024 * 1024)),
}


def try_archive(name: str) -> str:
    """How unpacking is refused; empty when it was not, or when something lies outside of the folder."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for info, content in (_entry("evil/plugin.toml", _MANIFEST.encode()), _entry("evil/x"), ARCHIVES[name]()):
            archive.writestr(info, content, zipfile.ZIP_DEFLATED, 1)
    with tempfile.TemporaryDirectory(prefix="jf-") as directory:
        file, folder = Path(directory) / "evil.zip", Path(directory) / "into" / "folder"
        file.write_bytes(data.getvalue())
        folder.mkdir(parents=True)
        before = set(Path(directory).rglob("*"))
        try:
            unpack(file, folder)
        except ArchiveError as error:
            outside = {path for path in set(Path(directory).rglob("*")) - before if folder not in path.parents}
            return "" if outside or Path("/tmp/jackfield-escaped").exists() else str(error)
    return ""

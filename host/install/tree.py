"""A plugin's folder as names and digests: the same files give the same digest, on every machine."""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

LINK: Final = "link"
SPECIAL: Final = "special"
"""Neither file nor folder: a socket, a pipe, a device."""
_CACHE: Final = "__pycache__"
_REMOVAL_ATTEMPTS: Final = 5
_NAMES_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Tree:
    """The content of one folder.

    `files`: path below the folder, with `/`, to `sha256:<hex>`, with `+x` behind it when it may be executed. Links and
    special files have the words `link` and `special` instead. Hidden files count; folders count by what is in them.
    """

    files: Mapping[str, str]
    caches: tuple[Path, ...] = ()
    """Folders of compiled Python. They are nobody's work, come and go by themselves, and do not count."""

    @property
    def digest(self) -> str:
        return digest_of(self.files)


@dataclass(frozen=True, slots=True)
class Difference:
    """What separates the files on disk from those that were expected; empty when nothing does."""

    changed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.missing)

    def lines(self) -> Iterator[str]:
        """One line per file."""
        for word in ("changed", "added", "missing"):
            yield from (f"{word}: {name}" for name in getattr(self, word))

    def summary(self) -> str:
        """The first few files in half a sentence."""
        lines = list(self.lines())
        more = f" and {len(lines) - _NAMES_SHOWN} more" if len(lines) > _NAMES_SHOWN else ""
        return ", ".join(lines[:_NAMES_SHOWN]) + more


@dataclass(slots=True)
class _Scan:
    root: Path
    files: dict[str, str] = field(default_factory=dict)
    caches: list[Path] = field(default_factory=list)

    def folder(self, path: Path, prefix: str) -> None:
        with os.scandir(path) as entries:
            for entry in entries:
                # Bytes that are no UTF-8 would not survive being written down.
                name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                if entry.is_symlink():
                    self.files[name] = LINK
                elif entry.is_dir():
                    if entry.name == _CACHE:
                        self.caches.append(Path(entry.path))
                    else:
                        self.folder(Path(entry.path), f"{name}/")
                elif entry.is_file():
                    self.files[name] = _file_digest(Path(entry.path))
                else:
                    self.files[name] = SPECIAL


def scan(directory: Path) -> Tree:
    """Read every file of a folder. Blocks. Raises OSError; a file that vanishes meanwhile is one of its cases."""
    found = _Scan(directory)
    found.folder(directory, "")
    return Tree(files=dict(sorted(found.files.items())), caches=tuple(found.caches))


def digest_of(files: Mapping[str, str]) -> str:
    """`sha256:<hex>` over names and digests."""
    # As JSON no two listings read the same.
    listing = msgspec.json.encode(sorted(files.items()))
    return f"sha256:{hashlib.sha256(listing).hexdigest()}"


def difference(expected: Mapping[str, str], found: Mapping[str, str]) -> Difference:
    """What has to be told about `found` to somebody who expects `expected`."""
    return Difference(
        changed=tuple(sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])),
        added=tuple(sorted(found.keys() - expected.keys())),
        missing=tuple(sorted(expected.keys() - found.keys())),
    )


def remove_caches(tree: Tree) -> None:
    """Throw compiled Python away, so that nobody's cache runs in the place of checked sources. Raises OSError."""
    for cache in tree.caches:
        for attempt in range(1, _REMOVAL_ATTEMPTS + 1):
            try:
                shutil.rmtree(cache)
            except FileNotFoundError:
                break
            except OSError:
                # Another process of the same plugin may just be writing into it.
                if attempt == _REMOVAL_ATTEMPTS:
                    raise
            else:
                break


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        executable = os.fstat(file.fileno()).st_mode & 0o111
        hexdigest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"sha256:{hexdigest}+x" if executable else f"sha256:{hexdigest}"

"""Cooldowns in files beside the credentials: one `.cds` file per credential in the auth directory (spec 5.12)."""

import asyncio
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from host.credentials import files
from host.state.cooldowns import DECODER, CooldownSet

log = structlog.get_logger("host.credentials.cooldown_files")

SUFFIX: Final = ".cds"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def file_name(auth_id: str, path: str, directory: str) -> str:
    """Where the cooldowns of a credential are kept, relative to the auth directory.

    Beside its own file, when it has one there. Raises ValueError for a relative path that leads out of the directory.
    """
    if not path:
        return f"{_UNSAFE.sub('_', auth_id).strip('._-') or 'credential'}{SUFFIX}"
    inside = os.path.normpath(os.path.relpath(path, directory) if os.path.isabs(path) else path)
    if inside == os.pardir or inside.startswith(os.pardir + os.sep):
        if not os.path.isabs(path):
            raise ValueError("missing auth identity")
        inside = os.path.basename(path)
    return os.path.splitext(inside)[0] + SUFFIX


class CooldownFiles:
    """A `CooldownStore` in a directory. Saves wait for each other; a file is written whole or not at all."""

    def __init__(self, directory: str) -> None:
        self.directory: Final = directory
        self._lock: Final = asyncio.Lock()
        self._written: dict[str, str] = {}
        """Credentials whose file, of this name, is known to say what it should."""

    async def load(self) -> Sequence[CooldownSet]:
        return await asyncio.to_thread(self._load)

    async def save(self, every: Mapping[str, CooldownSet], changed: Collection[str]) -> None:
        async with self._lock:
            await asyncio.to_thread(self._save, every, changed)

    def _load(self) -> list[CooldownSet]:
        found = []
        for path in self._paths():
            try:
                data = files.read_bytes(path)
                if data is None or not data.strip():
                    continue
                found.append(DECODER.decode(data))
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                log.warning("cooldowns.unreadable", path=path, reason=str(error))
        return found

    def _save(self, every: Mapping[str, CooldownSet], changed: Collection[str]) -> None:
        """Everything that can be written; raises the first OSError afterwards."""
        names = dict(self._names(every))
        failures: list[OSError] = []
        written: dict[str, str] = {}
        for auth_id, name in names.items():
            if auth_id not in changed and self._written.get(auth_id) == name:
                written[auth_id] = name
                continue
            document = msgspec.json.encode(replace(every[auth_id], path=""))
            try:
                files.write(os.path.join(self.directory, name), msgspec.json.format(document, indent=2) + b"\n")
                written[auth_id] = name
            except OSError as error:
                failures.append(error)
        self._written = written
        wanted = {os.path.join(self.directory, name) for name in names.values()}
        for path in self._paths():
            if path not in wanted:
                try:
                    files.remove(path)
                except OSError as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _names(self, every: Mapping[str, CooldownSet]) -> Iterator[tuple[str, str]]:
        taken: set[str] = set()
        for auth_id, found in every.items():
            try:
                name = file_name(auth_id, found.path, self.directory)
            except ValueError as error:
                log.warning("cooldowns.not_kept", credential=auth_id, reason=str(error))
                continue
            if name in taken:
                digest = hashlib.sha256(auth_id.encode()).hexdigest()[:8]
                name = f"{name.removesuffix(SUFFIX)}-{digest}{SUFFIX}"
            taken.add(name)
            yield auth_id, name

    def _paths(self) -> list[str]:
        """Every cooldown file below the directory."""
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(self.directory)
            for name in names
            if name.endswith(SUFFIX) and not name.startswith(".")
        )

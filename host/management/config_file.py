"""Changes of the configuration file over HTTP: checked as a whole, written with comments, then applied."""

import asyncio
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from host.config.editable import open_tree
from host.config.load import ConfigError, LoadedConfig, parse_config
from host.config.model import Config
from host.config.rewrite import rewrite
from host.config.sanitise import Dropped
from host.config.splice import spliced_source
from host.config.tree import read_tree
from host.management.applier import ConfigApplier
from host.management.calls import ManagementError
from host.observe.logs import redact

Edit = Callable[[dict[Any, Any]], None]
"""Changes the tree in place. Raises ManagementError; then nothing is written."""
_DUPLICATE: Final = re.compile(r"(found duplicate key \S+) with value.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FileView:
    """What the file says at one moment, and what it means. `tree` is not to be changed."""

    tree: Mapping[str, Any]
    config: Config
    dropped: Sequence[Dropped] | None
    """The entries of its lists that are not used; None when the file is invalid: `config` is what is in force."""


KnowingEdit = Callable[[dict[Any, Any], FileView], None]
"""An edit that is told what the file says before it, and what that means."""


class ConfigFile:
    """The operator's file. What was saved is applied in the background, the newest wins."""

    def __init__(
        self,
        file: Path,
        applier: ConfigApplier,
        config: Callable[[], Config],
        *,
        refused: Callable[[Config], str | None] = lambda config: None,
    ) -> None:
        """`refused` says why a valid configuration must not be in force all the same."""
        self._file: Final = file
        self._applier: Final = applier
        self._config: Final = config
        self._refused: Final = refused
        self._latest: LoadedConfig | None = None
        """What was read last, from which the next text mostly does not differ."""

    async def loaded(self) -> Config:
        """What the file says now; what is in force while the file is invalid or away."""
        try:
            return (await asyncio.to_thread(self._load)).config
        except (OSError, UnicodeDecodeError, ConfigError):
            return self._config()

    async def text(self) -> str:
        """The file as it is. Raises ManagementError 404 when it cannot be read."""
        try:
            return await asyncio.to_thread(self._file.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ManagementError(404, "not_found", f"the configuration file cannot be read: {error}") from None

    async def view(self) -> FileView:
        """What the file says and means. Raises ManagementError 404, and 500 when it is no YAML."""
        return await asyncio.to_thread(self._viewed, await self.text())

    async def tree(self) -> Mapping[str, Any]:
        """What the file says, not to be changed. Raises as `view`."""
        return (await self.view()).tree

    async def change(self, edit: Edit) -> dict[str, Any]:
        """Edit the file and apply it soon.

        Raises ManagementError: what `edit` raises, 400 `invalid_config` with the places of the mistakes for a change
        that makes the file invalid, 500 when it is invalid already or cannot be written. Nothing is written then.
        """
        return await self.change_knowing(lambda tree, view: edit(tree))

    async def change_knowing(self, edit: KnowingEdit) -> dict[str, Any]:
        """The same for an edit that has to know what the file means at that moment."""
        async with self._applier.editing:
            loaded = await asyncio.to_thread(self._edit, edit)
            generation = self._applier.stamp()
        self._applier.submit(loaded, generation)
        return {"status": "ok", "generation": generation}

    async def replace(self, make: Callable[[str], str]) -> int:
        """Write what `make` makes of the present text, and apply it soon; the number of the configuration.

        `make` raises ManagementError. Raises it too: 422 for an invalid configuration, 500 `write_failed`.
        """
        async with self._applier.editing:
            loaded = await asyncio.to_thread(self._replace, make)
            generation = self._applier.stamp()
        self._applier.submit(loaded, generation)
        return generation

    def _load(self) -> LoadedConfig:
        return self._read(self._file.read_text(encoding="utf-8"))

    def _read(self, text: str) -> LoadedConfig:
        latest = self._latest
        if latest is None or latest.text != text:
            latest = self._latest = parse_config(text, file=os.fspath(self._file), before=latest)
        return latest

    def _viewed(self, text: str) -> FileView:
        try:
            return _view_of(self._read(text))
        except ConfigError:
            return FileView(self._parse(text), self._config(), None)

    def _parse(self, text: str) -> Mapping[str, Any]:
        try:
            return read_tree(text, os.fspath(self._file))
        except ConfigError as error:
            raise ManagementError(500, "invalid_config", **problems_of(error)) from None

    def _edit(self, edit: KnowingEdit) -> LoadedConfig:
        try:
            return rewrite(os.fspath(self._file), lambda before: self._edited(before, edit))
        except OSError as error:
            raise ManagementError(500, f"failed to save config: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise ManagementError(500, f"failed to save config: {error}") from None

    def _edited(self, before: str, edit: KnowingEdit) -> tuple[str, LoadedConfig]:
        name = os.fspath(self._file)
        try:
            present = self._read(before)
            tree = open_tree(before, name, source=present.source)
            edit(tree, _view_of(present))
            made = spliced_source(before, tree)
        except ConfigError as error:
            raise ManagementError(500, "failed to save config: the file is invalid", **problems_of(error)) from None
        if made.text == before:
            return before, present
        try:
            loaded = parse_config(made.text, file=name, before=replace(present, source=made))
        except ConfigError as error:
            raise ManagementError(400, "invalid_config", **problems_of(error)) from None
        if (reason := self._refused(loaded.config)) is not None:
            raise ManagementError(400, "invalid_config", reason)
        self._latest = loaded
        return made.text, loaded

    def _replace(self, make: Callable[[str], str]) -> LoadedConfig:
        try:
            return rewrite(os.fspath(self._file), lambda before: self._made(before, make), may_be_missing=True)
        except OSError as error:
            raise ManagementError(500, "write_failed", error.strerror or str(error)) from None
        except UnicodeDecodeError as error:
            raise ManagementError(500, "write_failed", f"the present file cannot be read: {error}") from None

    def _made(self, before: str, make: Callable[[str], str]) -> tuple[str, LoadedConfig]:
        text = make(before)
        try:
            loaded = self._read(text)
        except ConfigError as error:
            raise ManagementError(422, "invalid_config", **problems_of(error)) from None
        if (reason := self._refused(loaded.config)) is not None:
            raise ManagementError(422, "invalid_config", reason)
        return text, loaded


def _view_of(loaded: LoadedConfig) -> FileView:
    return FileView(loaded.source.tree if loaded.source is not None else {}, loaded.config, loaded.dropped)


def problems_of(error: ConfigError) -> Mapping[str, Any]:
    """`message` and `problems` of an answer: where every mistake is, without the values that stand there."""
    found = [
        {"file": os.path.basename(it.file), "line": it.line, "message": _harmless(it.message)} for it in error.problems
    ]
    return {"message": "; ".join(f"line {it['line']}: {it['message']}" for it in found), "problems": found}


def _harmless(message: str) -> str:
    return redact(_DUPLICATE.sub(r"\1", message))

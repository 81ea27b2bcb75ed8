"""The auth directory: its files and the records made of them, read once and then changed file by file.

A file that cannot be used keeps the record it had, and is reported. Reading and writing happen in a thread; everything
else on the event loop.
"""

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import msgspec
import structlog
from msgspec import Raw

from host.config.model import Config, config_path
from host.credentials import files
from host.credentials.files import FileContent, Overtaken
from host.credentials.finish import uninterrupted, unless_overtaken
from host.credentials.manager import CredentialManager
from host.credentials.newer import NewerTokens
from host.credentials.parse import (
    InvalidCredential,
    ParseSettings,
    PluginAway,
    parse_settings,
    provider_of_document,
    record_of_file,
)
from host.credentials.plugin_port import AuthPlugins, Claimed
from host.credentials.records import Credential, CredentialChange
from host.credentials.takeover import refused_claims
from host.credentials.virtual import records_of_plugin
from pluginabi.errors import PluginTransportError
from pluginabi.payloads.credentials import AuthParseRequest

log = structlog.get_logger("host.credentials.files")

PARSE_AT_ONCE: Final = 64
"""Files that plugins are asked about at the same time."""
_YIELD_EVERY: Final = 200
"""Files parsed in one go before others get the event loop."""

Note = Callable[[Credential], Credential]


class AuthDirectory:
    """The files of `auth-dir` and the records that the manager has of them."""

    def __init__(self, manager: CredentialManager, plugins: AuthPlugins, config: Config) -> None:
        self.manager: Final = manager
        self.problems: dict[str, str] = {}
        """Path -> why its newest content has no effect."""
        self.moved = asyncio.Event()
        """Set when `directory` has become another one; whoever watches it clears it."""
        self.has_waiting = asyncio.Event()
        """Set while there are files whose plugin could not be asked."""
        self.newer: Final = NewerTokens()
        self.is_loaded = False
        """Whether there are records of the files yet: plugins register before that."""
        self._waiting: set[str] = set()
        self._contested: set[str] = set()
        """Files that want an id which belongs to another credential, for now."""
        self._providers: tuple[int, frozenset[str]] | None = None
        """As of a generation of the manager."""
        self._plugins: Final = plugins
        self._contents: dict[str, FileContent] = {}
        self._made_of: dict[str, bytes] = {}
        """Path -> digest of the content that the present records were made of."""
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._applying: Final = asyncio.Lock()
        self._settings = _settings(config)

    @property
    def directory(self) -> str:
        return self._settings.auth_dir

    @property
    def settings(self) -> ParseSettings:
        return self._settings

    def providers(self) -> frozenset[str]:
        """Whom the files and their records belong to: the executors that are needed."""
        if self._providers is None or self._providers[0] != self.manager.generation:
            named = {provider_of_document(it.members) for it in self._contents.values() if it.members is not None}
            named |= {record.provider for record in self.manager.credentials if record.path}
            self._providers = self.manager.generation, frozenset(named)
        return self._providers[1]

    def path_of(self, name: str) -> str:
        """The path of a file by its name. Raises files.InvalidName."""
        return os.path.join(self.directory, files.checked_name(name))

    def paths(self) -> list[str]:
        """The files that are there now. Blocks. Raises OSError."""
        return list(files.scan(self.directory, subfolders=self._settings.subfolders))

    def path_known_as(self, name: str) -> str | None:
        """The path of a file that was read under this name."""
        return next((path for path in self._contents if self._settings.name_of(path) == name), None)

    def content(self, path: str) -> FileContent | None:
        """What was read of a file last."""
        return self._contents.get(path)

    async def scan(self) -> None:
        """Read every file; records are made by `load`. Raises OSError, and keeps what it had then."""
        await self._scan(self._settings)

    async def _scan(self, settings: ParseSettings) -> None:
        self._contents = await asyncio.to_thread(files.read_all, settings.auth_dir, subfolders=settings.subfolders)
        self._made_of.clear()
        self._contested.clear()
        self._providers = None
        self.problems.clear()

    async def load(self) -> CredentialChange:
        """Make the records of all files anew from what was read: at the start, and when plugins or settings changed."""
        async with self._applying:
            gone = {path for path in self._known_paths() if path not in self._contents}
            change = await self._apply([*self._contents.values()], removed=gone)
            self.is_loaded = True
            return change

    async def retry(self) -> CredentialChange:
        """Parse again the files whose plugin could not be asked."""
        async with self._applying:
            contents = [self._contents[path] for path in sorted(self._waiting) if path in self._contents]
            self._waiting.clear()
            self.has_waiting.clear()
            return await self._apply(contents, removed=())

    async def apply_config(self, config: Config) -> CredentialChange:
        """Follow the configuration: another directory, other exclusions, other OpenAI-compatible providers."""
        settings = _settings(config)
        if settings == self._settings:
            return CredentialChange()
        is_elsewhere = (settings.auth_dir, settings.subfolders) != (self.directory, self._settings.subfolders)
        if is_elsewhere:
            await self._scan(settings)
            self.moved.set()
        self._settings = settings
        return await self.load()

    async def refresh(self, paths: Iterable[str]) -> CredentialChange:
        """Read some files again: what is new, changed or gone takes effect, what says the same does nothing."""
        wanted = sorted(set(paths))
        async with self._applying, AsyncExitStack() as locks:
            for path in wanted:
                await locks.enter_async_context(self._lock(path))
            found = await asyncio.to_thread(files.read_some, wanted)
            changed, removed = [], []
            for path, content in found.items():
                known = self._contents.get(path)
                if content is None:
                    if known is not None:
                        self._forget(path)
                        removed.append(path)
                elif known is None or known.digest != content.digest:
                    self._contents[path] = content
                    changed.append(content)
            contested = self._contested - {content.path for content in changed}
            return await self._apply([*changed, *(self._contents[path] for path in contested)], removed=removed)

    async def store(self, path: str, data: bytes) -> tuple[Credential, ...]:
        """Write a file whose content can be used, and take its records over at once.

        Raises InvalidCredential when it cannot: an existing file is left as it is then. Raises OSError.
        """
        async with self._lock(path):
            return await self._store(path, data)

    async def put(self, path: str, edit: Callable[[bytes | None], bytes]) -> tuple[Credential, ...]:
        """Write what `edit` makes of the file as it is on disk, or of None when there is none. Raises as `store`, and
        what `edit` raises."""

        async def attempt() -> tuple[Credential, ...]:
            present = await asyncio.to_thread(files.read_bytes, path)
            return await self._store(path, edit(present), over=present)

        async with self._lock(path):
            return await unless_overtaken(attempt)

    async def undo(self, path: str, written: bytes, before: bytes | None) -> None:
        """Put back what stood in a file (None: there was none) before something was written, whether it can be used or
        not; nothing when it says something else by now, a new token perhaps. Raises OSError."""
        async with self._lock(path):
            if await asyncio.to_thread(files.read_bytes, path) != written:
                return
            await uninterrupted(self._undo(path, written, before))
        await self.refresh([path])

    async def _undo(self, path: str, written: bytes, before: bytes | None) -> None:
        if before is None:
            await self._discard(path)
            return
        try:
            await asyncio.to_thread(files.write, path, before, over=written)
        except Overtaken:
            return
        if files.content_of(path, before).members is None:
            self.manager.set_source(path, ())

    async def change(
        self, path: str, edit: Callable[[bytes], bytes], *, note: Note | None = None, refreshed: bool = False
    ) -> tuple[Credential, ...]:
        """Write what `edit` makes of the file as it is on disk. Raises FileNotFoundError, else as `store`.

        `note` adds to its records what the file does not say. `refreshed`: their token was renewed.
        """

        async def attempt() -> tuple[Credential, ...]:
            present = await asyncio.to_thread(files.present, path)
            try:
                data = edit(present)
            except msgspec.DecodeError as error:
                raise InvalidCredential(f"the file is no JSON object: {error}") from None
            return await self._store(path, data, note=note, refreshed=refreshed, over=present)

        async with self._lock(path):
            return await unless_overtaken(attempt)

    async def renew(
        self,
        known: Credential,
        edit: Callable[[bytes], Awaitable[bytes | None]],
        make: Callable[[Credential], Credential],
    ) -> None:
        """Write what `edit` makes of a record's file (None leaves it alone), and take over what `make` makes of the
        record as it is then.

        No plugin is asked to parse it: a token that was given out once must not get lost on the way. Raises
        FileNotFoundError, OSError and msgspec.DecodeError when the file cannot be written, and what `edit` and `make`
        raise; the record is not taken over then.
        """
        path = known.path

        async def attempt() -> None:
            present = await asyncio.to_thread(files.present, path)
            await uninterrupted(self._renew(known, await edit(present), make, over=present))

        async with self._lock(path):
            await unless_overtaken(attempt)

    async def discard(self, path: str) -> bool:
        """Delete a file and drop its records; False when it was gone already. Raises OSError."""
        async with self._lock(path):
            return await uninterrupted(self._discard(path))

    async def _store(
        self,
        path: str,
        data: bytes,
        *,
        note: Note | None = None,
        refreshed: bool = False,
        over: bytes | None = None,
    ) -> tuple[Credential, ...]:
        content = _usable(files.content_of(path, data))
        records = await self._records(content)
        self._check_ids(path, records)
        return await uninterrupted(
            self._put(content, partial(files.write, path, data, over=over), records, note, refreshed)
        )

    async def _put(
        self,
        content: FileContent,
        write: Callable[[], bool],
        records: Sequence[Credential],
        note: Note | None,
        refreshed: bool,
    ) -> tuple[Credential, ...]:
        path = content.path
        await asyncio.to_thread(write)
        # The watcher finds nothing new in the file then.
        self._contents[path] = content
        records = self._carried(content, records)
        if note is not None:
            records = tuple(note(record) for record in records)
        try:
            self._check_ids(path, records)
        except InvalidCredential as error:
            # Another file has taken the id while this one was written.
            self._reject(content, str(error))
            self._contested.add(path)
            raise
        self._made_of[path] = content.digest
        self._contested.discard(path)
        self.problems.pop(path, None)
        renewed = frozenset(record.id for record in records) if refreshed else frozenset[str]()
        self.manager.set_sources({path: records}, refreshed=renewed)
        return self.manager.records_of(path)

    async def _renew(
        self, known: Credential, data: bytes | None, make: Callable[[Credential], Credential], *, over: bytes
    ) -> None:
        path = known.path
        if data is None:
            self.newer.note_replaced(known)
        if data is not None:
            await asyncio.to_thread(files.write, path, data, over=over)
            content = files.content_of(path, data)
            self._contents[path] = content
            self._made_of[path] = content.digest
            self.newer.forget(known.id)
        current = self.manager.by_id.get(known.id)
        if current is not None:
            self.manager.update(make(current), refreshed=True)

    async def _discard(self, path: str) -> bool:
        existed = await asyncio.to_thread(files.remove, path)
        self._forget(path)
        self.manager.set_source(path, ())
        return existed

    async def _apply(self, contents: Sequence[FileContent], *, removed: Iterable[str]) -> CredentialChange:
        """Make the records of these contents and hand all of them to the manager at once."""
        made: list[tuple[FileContent, Sequence[Credential]]] = []
        asked: list[FileContent] = []
        for number, content in enumerate(contents, 1):
            if content.members is not None and self._plugins.parses(provider_of_document(content.members)):
                asked.append(content)
            else:
                try:
                    made.append((content, self._plain_record(_usable(content))))
                except InvalidCredential as error:
                    self._reject(content, str(error))
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        await self._ask(asked, made)
        sources: dict[str, Sequence[Credential]] = dict.fromkeys(removed, ())
        # What was written meanwhile has its records already, from whoever wrote it.
        found = [
            (content, self._carried(content, records))
            for content, records in made
            if self._contents.get(content.path) is content
        ]
        claims = [(content.path, records) for content, records in found]
        refused = refused_claims(claims, removed=sources, holder_of=self._holder_of)
        for content, records in found:
            if (credential_id := refused.get(content.path)) is not None:
                self._contested.add(content.path)
                self._reject(content, _taken(credential_id))
                continue
            sources[content.path] = records
            self._contested.discard(content.path)
            self._made_of[content.path] = content.digest
            self.problems.pop(content.path, None)
        return self.manager.set_sources(sources)

    async def _ask(self, contents: Sequence[FileContent], made: list[tuple[FileContent, Sequence[Credential]]]) -> None:
        """Have plugins parse these."""
        places = asyncio.Semaphore(PARSE_AT_ONCE)

        async def one(content: FileContent) -> None:
            async with places:
                try:
                    made.append((content, await self._records(content)))
                except InvalidCredential as error:
                    self._reject(content, str(error))

        if contents:
            async with asyncio.TaskGroup() as group:
                for content in contents:
                    group.create_task(one(content), name=f"auth.parse:{os.path.basename(content.path)}")

    async def _records(self, content: FileContent) -> tuple[Credential, ...]:
        """The records of a usable content: a plugin's, if one claims it. Raises InvalidCredential."""
        members = _members(content)
        provider = provider_of_document(members)
        if self._plugins.parses(provider):
            claimed = await self._claimed(content.path, provider, members)
            if claimed is not None:
                return self._claimed_records(content.path, provider, members, claimed)
        return self._plain_record(content)

    def _claimed_records(
        self, path: str, provider: str, members: Mapping[str, Any], claimed: Claimed
    ) -> tuple[Credential, ...]:
        try:
            return records_of_plugin(
                claimed.records,
                plugin_id=claimed.plugin_id,
                provider=provider or claimed.provider,
                document=members,
                path=path,
                settings=self._settings,
                mint=self.manager.mint,
                now_s=self.manager.clock(),
            )
        except RecursionError:
            raise InvalidCredential("a record of the file is nested too deeply") from None

    async def _claimed(self, path: str, provider: str, members: Mapping[str, Any]) -> Claimed | None:
        request = AuthParseRequest(
            provider=provider,
            path=path,
            file_name=self._settings.name_of(path),
            file=Raw(msgspec.json.encode(members)),
        )
        try:
            return await self._plugins.parse(request)
        except PluginTransportError as error:
            # Without its plugin nobody knows what the file means: the host's own reading could be wrong.
            self._waiting.add(path)
            self.has_waiting.set()
            raise PluginAway(str(error), http_status=error.http_status) from None

    def _plain_record(self, content: FileContent) -> tuple[Credential, ...]:
        now_s = self.manager.clock()
        try:
            record = record_of_file(_members(content), content.path, self._settings, self.manager.mint, now_s=now_s)
        except RecursionError:
            raise InvalidCredential("the file is nested too deeply") from None
        return (record,)

    def _carried(self, content: FileContent, records: Sequence[Credential]) -> tuple[Credential, ...]:
        """The records with what the host knows of their earlier versions."""
        same_content = self._made_of.get(content.path) == content.digest
        by_id = self.manager.by_id
        return tuple(self.newer.carried(record, by_id.get(record.id), same_content=same_content) for record in records)

    def _check_ids(self, path: str, records: Sequence[Credential]) -> None:
        for record in records:
            if self._holder_of(record.id) not in (None, path):
                raise InvalidCredential(_taken(record.id))

    def _holder_of(self, credential_id: str) -> str | None:
        known = self.manager.by_id.get(credential_id)
        return known.path if known is not None else None

    def _reject(self, content: FileContent, reason: str) -> None:
        if self._contents.get(content.path) is content and self.problems.get(content.path) != reason:
            self.problems[content.path] = reason
            kept = len(self.manager.records_of(content.path))
            log.warning("credential.file_rejected", path=content.path, reason=reason, records_kept=kept)

    def _forget(self, path: str) -> None:
        for record in self.manager.records_of(path):
            self.newer.forget(record.id)
        self._contents.pop(path, None)
        self._made_of.pop(path, None)
        self._contested.discard(path)
        self.problems.pop(path, None)

    def _known_paths(self) -> set[str]:
        return {record.path for record in self.manager.credentials if record.path}

    def _lock(self, path: str) -> asyncio.Lock:
        """One change of a file at a time; whoever holds or awaits a lock keeps it alive."""
        lock = self._locks.get(path)
        if lock is None:
            lock = self._locks[path] = asyncio.Lock()
        return lock


def _settings(config: Config) -> ParseSettings:
    return parse_settings(config, config_path(config, config.auth_dir))


def _taken(credential_id: str) -> str:
    return f"its id {credential_id!r} belongs to another credential"


def _usable(content: FileContent) -> FileContent:
    if content.members is None:
        raise InvalidCredential(f"the file {content.problem}")
    return content


def _members(content: FileContent) -> Mapping[str, Any]:
    assert content.members is not None, "asked for the members of a file that cannot be used"
    return content.members

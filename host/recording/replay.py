"""Run a plugin against a recording: the same calls, one after the other, and what it decides now."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from host.config.model import Config, PluginPolicy, Plugins, PluginSection
from host.recording.callbacks import RecordedCallbacks
from host.recording.compare import Difference, differences
from host.recording.format import MAX_ITEMS, CallLine, Happened, Recording
from host.recording.redact import REDACTED, Redactor
from host.recording.tap import SECRET_CALLBACKS, Note
from host.runtime.apply import PluginRegistry
from host.runtime.carriers import Carriers
from host.runtime.handle import Binding, PluginSnapshot
from host.runtime.invoke import Invoker
from host.runtime.manifest import ManifestError, load_manifest
from host.runtime.processes import Processes
from host.runtime.scope import CallScope, RequestScope
from host.runtime.timings import ProcessTimings
from host.tasks import TaskGroup
from host.upstream import UpstreamClient
from pluginabi.codec import decode_params
from pluginabi.errors import AbiError
from pluginabi.methods import PLUGIN_METHODS

NOT_IMPLEMENTED: Final = "the plugin does not implement it"
CANCELLED: Final = "nobody waited for its answer when it was recorded"
READS_CREDENTIALS: Final = "it asked for credentials, which are never recorded"


class ReplayError(Exception):
    """The replay cannot begin; the message says why."""


class ReplayedCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one call."""

    number: int
    method: str
    request_id: str = ""
    skipped: str = ""
    """Why it was not made."""
    differences: Sequence[Difference] = ()
    masked: int = 0
    recorded_ms: float = 0.0
    now_ms: float = 0.0


class ReplayReport(Struct, frozen=True, kw_only=True):
    """The whole replay."""

    plugin: str
    recorded_version: str
    version: str
    calls: Sequence[ReplayedCall]

    @property
    def changed(self) -> Sequence[ReplayedCall]:
        return [call for call in self.calls if call.differences]

    @property
    def skipped(self) -> Sequence[ReplayedCall]:
        return [call for call in self.calls if call.skipped]


async def replay(
    recording: Recording,
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
) -> ReplayReport:
    """Start the plugin in `directory` and repeat every call. `config` replaces the recorded configuration.

    Callbacks are answered from the recording; nothing leaves the machine but what the plugin does by itself. Raises
    ReplayError.
    """
    try:
        manifest = load_manifest(directory)
    except (ManifestError, OSError) as error:
        raise ReplayError(str(error)) from None
    redactor = Redactor(bodies=recording.head.redacted_bodies)
    async with _started(recording, directory, manifest.id, config, redactor) as (snapshot, callbacks):
        player = _Player(snapshot, callbacks, manifest.id, redactor, ignore)
        calls = [await player.play(call) for call in recording.calls]
    return ReplayReport(
        plugin=manifest.id, recorded_version=recording.head.plugin_version, version=manifest.version, calls=calls
    )


@asynccontextmanager
async def _started(
    recording: Recording, directory: Path, plugin_id: str, config: Mapping[str, Any] | None, redactor: Redactor
) -> AsyncIterator[tuple[PluginSnapshot, RecordedCallbacks]]:
    """The plugin, running as a host runs it, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="jackfield-replay-") as made:
        plugins = Path(made) / "plugins"
        plugins.mkdir()
        (plugins / plugin_id).symlink_to(directory.absolute(), target_is_directory=True)
        tasks, client = TaskGroup("replay"), UpstreamClient()
        callbacks = RecordedCallbacks(client, redactor, tasks)
        processes = Processes(callbacks=callbacks, tasks=tasks, timings=ProcessTimings)
        registry = PluginRegistry(
            carriers=Carriers(callbacks=callbacks, tasks=tasks, process=processes),
            callbacks=callbacks,
            invoker=Invoker(),
            tasks=tasks,
            entry_points=tuple,
            needed=lambda config: frozenset(),
        )
        try:
            snapshot = await registry.apply(_config_for(made, plugin_id, recording, config))
            status = registry.status(plugin_id)
            if status is None or status.state != "ready":
                raise ReplayError(_why_not_ready(status.reason if status is not None else "", recording, config))
            yield snapshot, callbacks
        finally:
            await registry.stop()
            await processes.stop()
            await client.close()
            await tasks.stop()


def _config_for(made: str, plugin_id: str, recording: Recording, config: Mapping[str, Any] | None) -> Config:
    values = recording.head.config if config is None else config
    section = PluginSection(enabled=True, config=values, config_yaml=msgspec.json.encode(values).decode())
    policy = PluginPolicy(permissions=tuple(recording.head.permissions))
    plugins = Plugins(enabled=True, configs={plugin_id: section}, policy={plugin_id: policy})
    return Config(directory=made, plugins=plugins)


def _why_not_ready(reason: str, recording: Recording, config: Mapping[str, Any] | None) -> str:
    said = reason or "the plugin did not start"
    if config is not None:
        return said
    masked = REDACTED in msgspec.json.encode(recording.head.config).decode()
    why = "secrets are masked in the recorded configuration" if masked else "it ran with the recorded configuration"
    return f"{said}; {why}: another one is given with --plugin-config"


class _Player:
    """Makes one recorded call after the other."""

    def __init__(
        self,
        snapshot: PluginSnapshot,
        callbacks: RecordedCallbacks,
        plugin_id: str,
        redactor: Redactor,
        ignore: Sequence[str],
    ) -> None:
        self._snapshot: Final = snapshot
        self._callbacks: Final = callbacks
        self._plugin_id: Final = plugin_id
        self._redactor: Final = redactor
        self._ignore: Final = ignore

    async def play(self, call: CallLine) -> ReplayedCall:
        """Repeat `call`."""
        binding = self._snapshot.binding(self._plugin_id, call.method)
        skipped = call.omitted or (NOT_IMPLEMENTED if binding is None else "")
        if any(callback.method.startswith(SECRET_CALLBACKS) for callback in call.callbacks):
            skipped = READS_CREDENTIALS
        if binding is None or skipped:
            return _outcome(call, skipped=skipped)
        self._callbacks.expect(call.callbacks)
        clock = asyncio.get_running_loop().time
        began_s = clock()
        now = await self._made(binding, call)
        now_ms = round((clock() - began_s) * 1000, 3)
        found = [*differences(call, now, ignore=self._ignore), *self._callbacks.finish()]
        if call.error is not None and call.error.get("code") == "cancelled":
            return _outcome(call, skipped=CANCELLED, now_ms=now_ms)
        return _outcome(call, differences=found, now_ms=now_ms)

    async def _made(self, binding: Binding, call: CallLine) -> Happened:
        note = Note(number=call.number, method=call.method, params=b"")
        scope = CallScope(
            plugin_id=self._plugin_id,
            method=call.method,
            permissions=binding.permissions,
            request=RequestScope(request_id=call.request_id),
        )
        try:
            params = decode_params(call.method, Raw(msgspec.json.encode(call.params)))
            reply = await binding.handle.call(
                call.method,
                params,
                scope=scope,
                timeout_s=binding.timeout_s,
                stream=PLUGIN_METHODS[call.method].stream,
            )
            note.answered(reply.result, reply.usage)
            if reply.items is not None:
                await _read(reply.items, note, limit=len(call.items or ()) if call.items_cut else MAX_ITEMS)
        except AbiError as error:
            note.failed(error)
        finally:
            scope.close()
        return _happened(note, self._redactor.plain)


async def _read(items: Any, note: Note, *, limit: int) -> None:
    """As many items as were recorded; the rest of a longer stream is left."""
    note.told["items"] = []
    seen = 0
    try:
        async for item in items:
            if seen == limit:
                note.told["items_cut"] = True
                break
            seen += not item.is_progress
            note.streamed(item)
    finally:
        await items.aclose("client_gone")


def _happened(note: Note, plain: Callable[[bytes], Any]) -> Happened:
    told: dict[str, Any] = {name: plain(note.told[name]) for name in ("answer", "error") if name in note.told}
    if "items" in note.told:
        told["items"] = [plain(item) for item in note.told["items"]]
    return Happened(**told)


def _outcome(
    call: CallLine, *, skipped: str = "", differences: Sequence[Difference] = (), now_ms: float = 0.0
) -> ReplayedCall:
    return ReplayedCall(
        number=call.number,
        method=call.method,
        request_id=call.request_id,
        skipped=skipped,
        differences=differences,
        masked=call.masked,
        recorded_ms=call.duration_ms,
        now_ms=now_ms,
    )

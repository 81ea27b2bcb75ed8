"""Helpers for tests of `host.runtime`: plugin folders, scripted handles, and a registry with everything around it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from host.config.model import Config, PluginPolicy, Plugins, PluginSection
from host.runtime.apply import PluginRegistry
from host.runtime.bundled import BUNDLED_PACKAGE, bundled_dir
from host.runtime.callback_http import HttpCallbacks
from host.runtime.callback_kv import KvCallbacks
from host.runtime.callbacks import HostCallbacks
from host.runtime.carriers import Carriers, ProcessFactory
from host.runtime.discover import PluginSource
from host.runtime.handle import Binding, Inputs, PluginState, Reply
from host.runtime.hooks import new_plugin_manager
from host.runtime.inprocess import Hello, InProcessPlugin, InProcessStartError
from host.runtime.invoke import CallObserver, Invoker
from host.runtime.loopwatch import HeldReport, LoopWatch
from host.runtime.manifest import Manifest, load_manifest
from host.runtime.plan import SourceCheck, unchecked
from host.runtime.processes import Processes
from host.runtime.scope import CallScope
from host.runtime.timings import ProcessTimings
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from host.upstream.client import UpstreamClient
from pluginabi.errors import PluginTransportError
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse

HEADER = "import asyncio\nfrom pluginapi import *\n\n"


def plugin_folder(
    base: Path, plugin_id: str, code: str = "", *, manifest: str = "", files: Mapping[str, str] | None = None
) -> Path:
    """A plugin's folder with `plugin.toml` and `plugin.py`, whose class is `P`; `manifest` adds lines."""
    folder = base / plugin_id
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'id = "{plugin_id}"', 'version = "1.0.0"']
    if "runtime" not in manifest and "command" not in manifest:
        lines += ['runtime = "inprocess"', 'entry = "plugin:P"']
    (folder / "plugin.toml").write_text("\n".join([*lines, manifest]) + "\n")
    if code:
        (folder / "plugin.py").write_text(HEADER + code)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    return folder


def source_of(folder: Path) -> PluginSource:
    return PluginSource(manifest=load_manifest(folder), directory=folder, origin="directory")


class FakeHandle:
    """A scripted `PluginHandle`: answers from `answers`, a value, an exception, or a coroutine function."""

    def __init__(self, plugin_id: str = "p", **answers: Any) -> None:
        self.plugin_id = plugin_id
        self.state = PluginState.READY
        self.answers = answers
        self.calls: list[tuple[str, Payload]] = []
        self.scopes: list[CallScope] = []
        self.timeouts_s: list[float | None] = []

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        self.calls.append((method, params))
        self.scopes.append(scope)
        self.timeouts_s.append(timeout_s)
        answer = self.answers.get(method.replace(".", "_"), Reply(result=PLUGIN_METHODS[method].response()))
        if isinstance(answer, BaseException):
            raise answer
        if callable(answer):
            answer = await answer(params, scope)
        assert isinstance(answer, Reply)
        return answer


def binding(handle: Any, method: str, **fields: Any) -> Binding:
    defaults: dict[str, Any] = {
        "plugin_id": handle.plugin_id,
        "method": method,
        "priority": 0,
        "handle": handle,
        "on_error": PLUGIN_METHODS[method].on_error,
        "timeout_s": 5.0,
        "inputs": Inputs(),
        "permissions": frozenset(),
    }
    return Binding(**{**defaults, **fields})


class FakeProcess(FakeHandle):
    """A scripted generation: what its hello and registration say, what starting and reconfiguring do."""

    def __init__(
        self, plugin_id: str, *, generation: int, register: Callable[[], RegisterRequest], script: "Script"
    ) -> None:
        super().__init__(plugin_id, **script.answers)
        self.state = PluginState.STOPPED
        self.generation = generation
        self.hello: Hello | None = None
        self.registration: RegisterResponse | None = None
        self.last_error = ""
        self.register = register
        self.script = script
        self.requests: list[RegisterRequest] = []
        self.successor: Any = None
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        script = self.script
        self.state = PluginState.STARTING
        if script.gate is not None:
            script.starting.set()
            await script.gate.wait()
        if script.start_error:
            self.last_error = script.start_error
            self.state = PluginState.FAILED
            raise InProcessStartError(self.plugin_id, script.start_error)
        self.requests.append(self.register())
        self.hello = Hello(capabilities=tuple(script.capabilities), inputs=script.inputs, on_error={})
        self.registration = script.registration
        self.state = PluginState.READY

    async def reconfigure(self, request: RegisterRequest) -> bool:
        self.requests.append(request)
        if self.script.reconfigure_error is not None:
            raise self.script.reconfigure_error
        if self.script.reconfigures:
            self.registration = self.script.registration
        return self.script.reconfigures

    async def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Reply:
        if self.state is not PluginState.READY:
            raise PluginTransportError(self.plugin_id, method, phase="unavailable", cause=f"it is {self.state}")
        return await super().call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)

    async def drain_and_stop(self, *, drain_s: float, reason: str = "", successor: Any = None) -> None:
        self.successor = successor
        if self.script.busy is not None:
            await self.script.busy.wait()
        await self.stop()

    async def stop(self) -> None:
        self.state = PluginState.STOPPED
        self.stopped.set()

    def stderr_tail(self) -> Sequence[str]:
        return ()


@dataclass
class Script:
    """What the next generations of one plugin do."""

    capabilities: Sequence[str] = ("model.route",)
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    registration: RegisterResponse = field(default_factory=RegisterResponse)
    reconfigures: bool = False
    reconfigure_error: Exception | None = None
    start_error: str = ""
    gate: asyncio.Event | None = None
    starting: asyncio.Event = field(default_factory=asyncio.Event)
    busy: asyncio.Event | None = None
    """A drain takes until it is set."""
    answers: dict[str, Any] = field(default_factory=dict)


class Bench:
    """A registry over a temporary folder, with scripted processes and real in-process plugins."""

    def __init__(
        self,
        directory: Path,
        tasks: TaskGroup,
        *,
        client: UpstreamClient | None = None,
        process: ProcessFactory | None = None,
        bundled: bool = False,
        check: SourceCheck = unchecked,
    ) -> None:
        self.directory = directory
        self.tasks = tasks
        self.store = MemoryStore()
        self.callbacks = HostCallbacks(
            http=HttpCallbacks(client or UpstreamClient()), kv=KvCallbacks(self.store), tasks=tasks
        )
        self.invoker = Invoker()
        self.scripts: dict[str, Script] = {}
        self.made: list[FakeProcess] = []
        self.changes: list[Any] = []
        self.changed: Any = None
        self.held: list[tuple[str, str]] = []
        self.registry = PluginRegistry(
            carriers=Carriers(
                callbacks=self.callbacks,
                tasks=tasks,
                process=process or self,
                watch=LoopWatch(report=lambda plugin_id, method, held_s: self.held.append((plugin_id, method))),
            ),
            callbacks=self.callbacks,
            invoker=self.invoker,
            tasks=tasks,
            bundled_dir=bundled_dir() if bundled else None,
            bundled_package=BUNDLED_PACKAGE,
            entry_points=tuple,
            on_change=self.changes.append,
            check=check,
        )

    def __call__(self, plan: Any, *, generation: int, register: Any, changed: Any) -> FakeProcess:
        """As `ProcessFactory`: the next scripted process."""
        self.changed = changed
        script = self.scripts.setdefault(plan.plugin_id, Script())
        made = FakeProcess(plan.plugin_id, generation=generation, register=register, script=script)
        self.made.append(made)
        return made

    def process_plugin(self, plugin_id: str, script: Script | None = None, manifest: str = "") -> Script:
        """A plugin folder whose process is scripted."""
        plugin_folder(self.directory / "plugins", plugin_id, manifest='command = ["./run"]\n' + manifest)
        self.scripts[plugin_id] = script or Script()
        return self.scripts[plugin_id]

    def inprocess_plugin(self, plugin_id: str, code: str, manifest: str = "", **files: str) -> Path:
        texts = {f"{name}.py": text for name, text in files.items()}
        return plugin_folder(self.directory / "plugins", plugin_id, code, manifest=manifest, files=texts)

    def config(
        self,
        *,
        enabled: bool = True,
        policies: Mapping[str, PluginPolicy] | None = None,
        inprocess: Sequence[str] = (),
        **sections: PluginSection | Mapping[str, Any],
    ) -> Config:
        """A configuration; a section given as a mapping is an enabled plugin's config."""
        configs = {
            name.replace("_", "-"): section
            if isinstance(section, PluginSection)
            else PluginSection(enabled=True, config=section)
            for name, section in sections.items()
        }
        given = dict(policies or {})
        given |= {plugin_id: PluginPolicy(runtime="inprocess") for plugin_id in inprocess if plugin_id not in given}
        return Config(directory=str(self.directory), plugins=Plugins(enabled=enabled, configs=configs, policy=given))

    def status(self, plugin_id: str) -> Any:
        return next(row for row in self.registry.statuses() if row.id == plugin_id)


@asynccontextmanager
async def bench(directory: Path, **fields: Any) -> AsyncIterator[Bench]:
    tasks = TaskGroup("bench")
    made = Bench(directory, tasks, **fields)
    try:
        yield made
    finally:
        for script in made.scripts.values():
            for event in (script.gate, script.busy):
                if event is not None:
                    event.set()
        await made.registry.stop()
        await tasks.stop()


@asynccontextmanager
async def process_bench(directory: Path, timings: ProcessTimings, **fields: Any) -> AsyncIterator[Bench]:
    """A bench whose plugin processes are real."""
    tasks = TaskGroup("bench")
    holder: list[Processes] = []
    made = Bench(directory, tasks, process=lambda *args, **kwargs: holder[0](*args, **kwargs), **fields)
    holder.append(Processes(callbacks=made.callbacks, tasks=tasks, timings=lambda: timings))
    try:
        yield made
    finally:
        await made.registry.stop()
        await tasks.stop()
        await holder[0].stop()


@asynccontextmanager
async def started(
    directory: Path,
    code: str,
    *,
    permissions: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    report: HeldReport | None = None,
    callbacks: HostCallbacks | None = None,
) -> AsyncIterator[InProcessPlugin]:
    """An in-process plugin `p` whose class is `P`, started."""
    tasks = TaskGroup("test")
    plugin = not_started(
        directory, code, tasks, permissions=permissions, config=config, report=report, callbacks=callbacks
    )
    try:
        await plugin.start()
        yield plugin
        await plugin.stop()
    finally:
        await tasks.stop()


def not_started(
    directory: Path,
    code: str,
    tasks: TaskGroup,
    *,
    permissions: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    report: HeldReport | None = None,
    callbacks: HostCallbacks | None = None,
    max_inflight: int | None = None,
) -> InProcessPlugin:
    """The same before its start."""
    return InProcessPlugin(
        source_of(plugin_folder(directory, "p", code)),
        generation=1,
        register=lambda: RegisterRequest(config=config or {}, permissions=tuple(permissions)),
        manager=new_plugin_manager(),
        callbacks=callbacks or new_callbacks(tasks),
        watch=LoopWatch(report=report),
        tasks=tasks,
        max_inflight=max_inflight,
    )


def new_callbacks(tasks: TaskGroup, **fields: Any) -> HostCallbacks:
    http = fields.pop("http", None) or HttpCallbacks(UpstreamClient())
    kv = fields.pop("kv", None) or KvCallbacks(MemoryStore())
    return HostCallbacks(http=http, kv=kv, tasks=tasks, **fields)


def manifest(plugin_id: str = "p", **fields: Any) -> Manifest:
    return Manifest(id=plugin_id, version="1", **{"command": ("./run",), **fields})


def observer() -> tuple[list[tuple[str, str, str]], CallObserver]:
    """A list, and an observer that appends (plugin, method, outcome) to it."""
    seen: list[tuple[str, str, str]] = []
    return seen, lambda plugin_id, method, outcome, duration_s: seen.append((plugin_id, method, outcome))

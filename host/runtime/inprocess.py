"""A plugin inside the host: the carrier without serialisation. Its exceptions are ordinary errors."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final, Self

import pluggy
import structlog
from msgspec import Struct

from host.runtime import hooks
from host.runtime.callback_http import HttpItems
from host.runtime.callbacks import HostCallbacks, InlinePort
from host.runtime.discover import PluginSource
from host.runtime.drive import Driver
from host.runtime.handle import PluginHandle, PluginState, Reply
from host.runtime.loader import LoadError, PluginCode, load_plugin_code
from host.runtime.loopwatch import LoopWatch
from host.runtime.plan import SourceCheck, unchecked
from host.runtime.scope import CallScope
from host.runtime.slots import Slots
from host.tasks import TaskGroup
from pluginabi.body import StreamItem
from pluginabi.errors import AbiError, ErrorBody, PluginError, PluginTimeout, PluginTransportError, normalised
from pluginabi.frames import Usage
from pluginabi.limits import QUEUE_MAX_WAIT_S
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse, ShutdownRequest
from pluginapi import Dispatcher, DispatchReply
from pluginapi.dispatch import PassedItems

log = structlog.get_logger("host.runtime.inprocess")

_EMPTY_ANSWERS: Final[Mapping[str, Payload]] = {method: spec.response() for method, spec in PLUGIN_METHODS.items()}
REGISTER_TIMEOUT_S: Final = 10.0
SHUTDOWN_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
"""How long a stream's generator may take to clean up."""


class InProcessStartError(Exception):
    """An in-process plugin did not become ready; `reason` is a sentence for the operator."""

    def __init__(self, plugin_id: str, reason: str) -> None:
        super().__init__(f"plugin {plugin_id!r} did not start: {reason}")
        self.reason: Final = reason


class Hello(Struct, frozen=True, kw_only=True):
    """What a class says about itself: the counterpart of a process's hello."""

    capabilities: tuple[str, ...]
    inputs: Mapping[str, Sequence[str]]
    on_error: Mapping[str, str]


class InProcessPlugin:
    """One generation of a plugin that runs in the host; a `PluginHandle`.

    `register` makes the content of `plugin.register` anew at every start and reconfiguration.
    """

    def __init__(
        self,
        source: PluginSource,
        *,
        generation: int,
        register: Callable[[], RegisterRequest],
        manager: pluggy.PluginManager,
        callbacks: HostCallbacks,
        watch: LoopWatch,
        tasks: TaskGroup,
        max_inflight: int | None = None,
        check: SourceCheck = unchecked,
    ) -> None:
        self.plugin_id: Final = source.plugin_id
        self.generation: Final = generation
        self.state = PluginState.STOPPED
        self.hello: Hello | None = None
        self.registration: RegisterResponse | None = None
        self.last_error = ""
        self.in_flight = 0
        self._source: Final = source
        self._check: Final = check
        self._register: Final = register
        self._manager: Final = manager
        self._callbacks: Final = callbacks
        self._watch: Final = watch
        self._slots = (
            None
            if max_inflight is None
            else Slots(source.plugin_id, max_inflight=max_inflight, wait_s=QUEUE_MAX_WAIT_S)
        )
        self._tasks: Final = tasks
        self._driver: Final = Driver(watch)
        self._code: PluginCode | None = None
        self._dispatcher: Dispatcher | None = None
        self._alone = CallScope(plugin_id=source.plugin_id, method="")
        """Of what the plugin does on its own, until it is unloaded."""
        self._successor: PluginHandle | None = None
        self._idle: asyncio.Event | None = None
        """Set when no call runs any more; there once somebody waits for that."""

    async def start(self) -> None:
        """Load, register with pluggy, and call `plugin.register`. Raises InProcessStartError, in state failed."""
        self.state = PluginState.STARTING
        try:
            if (problem := await asyncio.to_thread(self._check, self._source)) is not None:
                raise LoadError(problem)
            self._load()
            self.state = PluginState.REGISTERING
            self.registration = await self._configure("plugin.register", self._register())
        except (LoadError, ValueError, AbiError) as error:
            self.last_error = str(error)
            self._unload()
            self.state = PluginState.FAILED
            raise InProcessStartError(self.plugin_id, self.last_error) from error
        self.last_error = ""
        self.state = PluginState.READY

    async def reconfigure(self, request: RegisterRequest) -> bool:
        """Hand over a changed configuration; False when the plugin does not list `plugin.reconfigure`.

        Raises what the plugin answered; registration and configuration stay as they were then.
        """
        if self.hello is None or "plugin.reconfigure" not in self.hello.capabilities:
            return False
        self.registration = await self._configure("plugin.reconfigure", request)
        return True

    def call(
        self, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None, stream: bool = False
    ) -> Coroutine[Any, Any, Reply]:
        """As `PluginHandle.call`. A hook that never waits costs neither a task nor a timer."""
        dispatcher = self._dispatcher
        if dispatcher is None or self.state is not PluginState.READY:
            if self._successor is not None:
                return self._successor.call(method, params, scope=scope, timeout_s=timeout_s, stream=stream)
            raise PluginTransportError(
                self.plugin_id, method, phase="unavailable", cause=self.last_error or f"the plugin is {self.state}"
            )
        if self._slots is None:
            return self._run(dispatcher, method, params, scope=scope, timeout_s=timeout_s)
        return self._run_in(self._slots, dispatcher, method, params, scope=scope, timeout_s=timeout_s)

    async def drain_and_stop(self, *, drain_s: float, successor: PluginHandle | None = None) -> None:
        """Refuse new calls (or pass them to `successor`), wait up to `drain_s` for running ones, then stop."""
        self._successor = successor
        if self.state is PluginState.READY:
            self.state = PluginState.DRAINING
        try:
            if self.in_flight:
                self._idle = asyncio.Event()
                async with asyncio.timeout(drain_s):
                    await self._idle.wait()
        except TimeoutError:
            log.warning("plugin.drain_timeout", plugin_id=self.plugin_id, in_flight=self.in_flight)
        await self.stop()

    async def stop(self) -> None:
        """Let the plugin save its state, and forget it. Idempotent; an error of the plugin is logged."""
        dispatcher = self._dispatcher
        if dispatcher is not None and "plugin.shutdown" in dispatcher.capabilities:
            scope = CallScope(plugin_id=self.plugin_id, method="plugin.shutdown", permissions=dispatcher.permissions)
            try:
                await self._run(
                    dispatcher, "plugin.shutdown", ShutdownRequest(), scope=scope, timeout_s=SHUTDOWN_TIMEOUT_S
                )
            except AbiError as error:
                log.warning("plugin.shutdown_failed", plugin_id=self.plugin_id, error=str(error))
            finally:
                scope.close()
        self._unload()
        if self.state is not PluginState.FAILED:
            self.state = PluginState.STOPPED

    def stderr_tail(self) -> list[str]:
        """Nothing: the plugin writes to the host's own."""
        return []

    def _load(self) -> None:
        self._code = load_plugin_code(self._source, generation=self.generation)
        try:
            plugin = self._code.plugin_class()
            dispatcher = Dispatcher(plugin)
        except (Exception, SystemExit) as error:
            # Constructor and class attributes are the author's: whatever comes of them is the reason.
            raise LoadError(f"{self._source.manifest.entry}() failed: {type(error).__name__}: {error}") from error
        hooks.register(self._manager, plugin, name=self._registered_name)
        self._dispatcher = dispatcher
        self._alone = CallScope(plugin_id=self.plugin_id, method="")
        self.hello = Hello(capabilities=dispatcher.capabilities, inputs=dispatcher.inputs, on_error=dispatcher.on_error)

    def _unload(self) -> None:
        self._alone.close()
        hooks.unregister(self._manager, name=self._registered_name)
        if self._dispatcher is not None:
            self._dispatcher.close()
            self._dispatcher = None
        if self._code is not None:
            self._code.unload()
            self._code = None

    @property
    def _registered_name(self) -> str:
        return f"{self.plugin_id}#{self.generation}"

    async def _configure(self, method: str, request: RegisterRequest) -> RegisterResponse:
        assert self._dispatcher is not None
        scope = CallScope(
            plugin_id=self.plugin_id,
            method=method,
            permissions=frozenset(request.permissions),
            deadline_s=time.monotonic() + REGISTER_TIMEOUT_S,
        )
        try:
            reply = await self._run(self._dispatcher, method, request, scope=scope, timeout_s=REGISTER_TIMEOUT_S)
        finally:
            scope.close()
        assert isinstance(reply.result, RegisterResponse)
        self._alone.permissions = scope.permissions
        return reply.result

    async def _run_in(
        self,
        slots: Slots,
        dispatcher: Dispatcher,
        method: str,
        params: Payload,
        *,
        scope: CallScope,
        timeout_s: float | None,
    ) -> Reply:
        """`_run` while one of `slots` is held."""
        await slots.acquire(method)
        try:
            return await self._run(dispatcher, method, params, scope=scope, timeout_s=timeout_s)
        finally:
            slots.release()

    async def _run(
        self, dispatcher: Dispatcher, method: str, params: Payload, *, scope: CallScope, timeout_s: float | None
    ) -> Reply:
        port = InlinePort(self._callbacks, scope, self._watch, self._alone)
        self.in_flight += 1
        answer: DispatchReply | None = None
        try:
            answer = await self._driver.run(
                dispatcher.dispatch(method, params, port.open_context()), port, timeout_s=timeout_s, dropped=self._drop
            )
        except PluginError as error:
            raise _from_plugin(error) from error.__cause__
        finally:
            self.in_flight -= 1
            if self._idle is not None:
                self._note_idle()
            if answer is None or answer.items is None:
                port.forget_context()
        assert answer is not None
        result = answer.result if answer.result is not None else _EMPTY_ANSWERS[method]
        if answer.items is None:
            return Reply(result=result, usage=answer.usage)
        self.in_flight += 1
        if isinstance(answer.items, PassedItems) and isinstance(answer.items.source, HttpItems):
            return Reply(result=result, items=_HostItems(answer.items, port, ended=self._leave))
        return Reply(result=result, items=_Items(answer.items, self._driver, port, ended=self._leave))

    def _leave(self) -> None:
        self.in_flight -= 1
        self._note_idle()

    def _note_idle(self) -> None:
        if self.in_flight == 0 and self._idle is not None:
            self._idle.set()

    def _drop(self, answer: DispatchReply) -> None:
        """An answer that came too late; a stream in it must not stay open."""
        if answer.items is not None:
            self._tasks.start(answer.items.aclose("deadline"), name=f"late-stream:{self.plugin_id}")


class _OpenItems:
    """A stream that counts as a call until it has ended: `ended` is told once."""

    __slots__ = ("_ended", "_port", "usage")

    def __init__(self, port: InlinePort, ended: Callable[[], None]) -> None:
        self.usage: Usage | None = None
        self._port = port
        self._ended: Callable[[], None] | None = ended

    def __aiter__(self) -> Self:
        return self

    def _end(self) -> None:
        if self._ended is not None:
            self._port.forget_context()
            self._ended()
            self._ended = None


class _Items(_OpenItems):
    """The items of a stream, each step of the author's generator driven like a call of its own."""

    __slots__ = ("_driver", "_items")

    def __init__(self, items: Any, driver: Driver, port: InlinePort, *, ended: Callable[[], None]) -> None:
        super().__init__(port, ended)
        self._items = items
        self._driver = driver

    async def __anext__(self) -> StreamItem:
        try:
            item: StreamItem = await self._driver.run(self._items.__anext__(), self._port, timeout_s=None)
            return item
        except StopAsyncIteration:
            self._end()
            raise
        except PluginError as error:
            self._end()
            raise _from_plugin(error) from error.__cause__

    async def aclose(self, reason: str = "client_gone") -> None:
        if self._ended is None:
            return
        self._port.cancel()
        try:
            await self._driver.run(self._items.aclose(reason), self._port, timeout_s=CLOSE_TIMEOUT_S)
        except PluginTimeout:
            log.warning("plugin.close_timeout", plugin_id=self._port.plugin_id, method=self._port.method)
        finally:
            self._end()

    def _end(self) -> None:
        self.usage = self._items.usage
        super()._end()


class _HostItems(_OpenItems):
    """An answer of `host.http.do_stream` that the plugin passes on as it is: none of its code has to run for it."""

    __slots__ = ("_iterator", "_source")

    def __init__(self, items: PassedItems, port: InlinePort, *, ended: Callable[[], None]) -> None:
        super().__init__(port, ended)
        self.usage = items.usage
        self._source = items.source
        self._iterator = aiter(items.source)

    async def __anext__(self) -> StreamItem:
        try:
            return await self._iterator.__anext__()
        except StopAsyncIteration:
            self._end()
            raise
        except PluginError as error:
            self._end()
            raise _from_plugin(error) from error.__cause__

    async def aclose(self, reason: str = "client_gone") -> None:
        if self._ended is not None:
            self._port.cancel()
            await self._source.aclose(reason)
            self._end()


def _from_plugin(error: PluginError) -> PluginError:
    """The error as a process's would arrive: normalised, its origin set by the host."""
    try:
        body = normalised(error.body, default_origin="plugin")
    except (TypeError, AttributeError):
        # Nothing checks the types of what an author builds in memory; a carrier with a wire would have refused it.
        body = ErrorBody(message=str(error), origin="plugin")
    return error if body is error.body else PluginError(body)

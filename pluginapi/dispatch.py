"""The one place where a call reaches an author's code, and where what it answers or raises is made uniform.

Used by `serve` in a process and by the host's in-process runtime, so that a plugin behaves the same in both.
"""

import asyncio
import functools
import inspect
import traceback
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from types import AsyncGeneratorType
from typing import Any, Final, Self, TypeAlias

from msgspec import UNSET, Struct
from msgspec.structs import replace

from pluginabi.body import Body, StreamItem
from pluginabi.errors import ErrorBody, PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.immutable import freeze
from pluginabi.methods import PLUGIN_METHODS, MethodSpec, OnError
from pluginabi.payloads.common import Empty, Payload
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.lifecycle import RegisterRequest, RegisterResponse
from pluginapi.answers import Reply, Stream, to_headers, to_item
from pluginapi.callbacks import HttpStream
from pluginapi.context import Context
from pluginapi.plugin import HOOK_NAMES, Plugin, capabilities_of, failure_modes_of, is_blocking
from pluginapi.threads import HookThreads
from pluginapi.tidy import tidy

ExceptionSink: TypeAlias = Callable[[BaseException, str, Context], None]
"""`sink(error, method, ctx)` for an exception that is not a `PluginError`: the only trace of it is made here."""
_Hook: TypeAlias = Callable[[Payload, Context], Any]
_LIFECYCLE: Final = frozenset(("plugin.register", "plugin.reconfigure"))


class DispatchReply(Struct, frozen=True):
    """A uniform answer: the result (None: no opinion), and the items when a stream was opened."""

    result: Payload | None = None
    usage: Usage | None = None
    """Of a complete answer; of a stream ask `usage_of` when it has ended."""
    items: Any = None
    """`OutgoingItems`, `PassedItems` or None; whoever takes it must `aclose` it."""

    def usage_of(self) -> Usage | None:
        """The usage for the closing frame."""
        return self.usage if self.items is None else self.items.usage


class Dispatcher:
    """One plugin instance, ready to be called by method name."""

    def __init__(self, plugin: Plugin, *, on_exception: ExceptionSink | None = None) -> None:
        """`on_exception` replaces the default, which logs the traceback through the call's context."""
        plugin_class = type(plugin)
        self.plugin: Final = plugin
        self.capabilities: Final = capabilities_of(plugin_class)
        self.inputs: Final[Mapping[str, tuple[str, ...]]] = {
            method: tuple(words) for method, words in plugin_class.inputs.items()
        }
        self.on_error: Final[Mapping[str, OnError]] = failure_modes_of(plugin_class)
        self.permissions: frozenset[str] = frozenset()
        """Granted by the last successful `plugin.register` or `plugin.reconfigure`."""
        self._on_exception: Final = on_exception or log_exception
        self._threads: Final = HookThreads(
            f"plugin:{plugin_class.id or plugin_class.__name__}", size=plugin_class.blocking_threads
        )
        self._hooks: Final = {
            method: (PLUGIN_METHODS[method], self._bind(getattr(plugin, HOOK_NAMES[method])))
            for method in self.capabilities
            if getattr(plugin_class, HOOK_NAMES[method]) is not getattr(Plugin, HOOK_NAMES[method])
        }

    def dispatch(self, method: str, params: Payload, ctx: Context) -> Coroutine[Any, Any, DispatchReply]:
        """To be awaited: run one hook. Raises nothing but `PluginError`.

        Cancelling the awaiting task cancels an `async` hook at its next await and sets `ctx.cancelled`; CancelledError
        then passes through. `plugin.register` and `plugin.shutdown` are answered even when they are not overridden.
        """
        if method in _LIFECYCLE:
            return self._configure(method, params, ctx)
        return self._run(method, params, ctx)

    def close(self) -> None:
        """Let the threads of blocking hooks end; no hook may be called any more."""
        self._threads.close()

    async def _configure(self, method: str, params: Payload, ctx: Context) -> DispatchReply:
        assert isinstance(params, RegisterRequest)
        # The configuration outlives the call, so not even the caller's own objects may be shared.
        params = replace(params, config=freeze(params.config), permissions=tuple(params.permissions))
        before = self.plugin.config
        self.plugin.config = params.config
        try:
            reply = await self._run(method, params, ctx)
        except BaseException:
            self.plugin.config = before
            raise
        self.permissions = frozenset(params.permissions)
        return reply

    async def _run(self, method: str, params: Payload, ctx: Context) -> DispatchReply:
        found = self._hooks.get(method)
        if found is None:
            return _unimplemented(method)
        spec, hook = found
        try:
            value = hook(params, ctx)
            if not isinstance(value, AsyncGeneratorType):
                value = await value
            if spec.stream:
                return await self._opened(spec, value, ctx)
            return _answer(spec, value)
        except BaseException as error:  # the boundary: nothing an author raises goes further as it is
            converted = self._convert(method, ctx, error)
            if converted is error:
                raise
            raise converted from error

    async def _opened(self, spec: MethodSpec, value: Any, ctx: Context) -> DispatchReply:
        convert = functools.partial(self._convert, spec.name, ctx)
        if isinstance(value, Stream):
            if not 200 <= value.status <= 299:
                raise PluginError(f"a stream's status is 200 to 299, not {value.status}; raise PluginError instead")
            result = ExecutorResponse(
                status=value.status, headers=to_headers(value.headers), metadata=freeze(value.metadata)
            )
            if isinstance(value.items, HttpStream):
                return DispatchReply(result, None, PassedItems(value.items, usage=value.usage))
            return DispatchReply(result, None, OutgoingItems(value.items, usage=value.usage, convert=convert))
        if isinstance(value, AsyncIterable):
            items = OutgoingItems(value, usage=None, convert=convert)
            await items.open()
            return DispatchReply(ExecutorResponse(), None, items)
        raise PluginError(f"{spec.name} answered {_described(value)}; it answers Stream or is an async generator")

    def _bind(self, hook: Callable[..., Any]) -> _Hook:
        call = _by_position(hook)
        if not is_blocking(hook):
            return call

        def in_thread(params: Payload, ctx: Context) -> Any:
            ctx.enter_thread()
            return self._threads.run(functools.partial(call, params, ctx))

        return in_thread

    def _convert(self, method: str, ctx: Context, error: BaseException) -> BaseException:
        """What leaves the boundary for `error`: a `PluginError`, or the same object when it is not the author's."""
        if isinstance(error, PluginError):
            return error
        if isinstance(error, PluginTransportError):
            return PluginError(error.to_error_body())
        if isinstance(error, asyncio.CancelledError) and _is_being_cancelled():
            ctx.cancelled.set()
            return error
        # A hook that lets somebody else's CancelledError or `sys.exit()` escape must not end the request as if the
        # client had gone, let alone the process.
        if not isinstance(error, (Exception, SystemExit, asyncio.CancelledError)):
            return error
        self._on_exception(error, method, ctx)
        return PluginError(ErrorBody(message=f"{type(error).__name__} in {method}"))


class OutgoingItems:
    """The items of a stream an author opened; raises nothing but `PluginError` (and cancellation).

    `usage` is complete once the iteration has ended, with or without an error. Iterate and close from one task, or
    close after the iterating task was cancelled.
    """

    def __init__(
        self, items: AsyncIterable[Any], *, usage: Usage | None, convert: Callable[[BaseException], BaseException]
    ) -> None:
        self.usage = usage
        self._source: Final = items
        self._iterator: AsyncIterator[Any] | None = None
        self._convert: Final = convert
        self._first: StreamItem | None = None
        self._is_raw: bool | None = None
        self._ended = False

    async def open(self) -> None:
        """Pull the first item, so that an error before it is an ordinary answer. Raises what the author raised."""
        try:
            self._first = await self._pull()
        except StopAsyncIteration:
            self._ended = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamItem:
        if self._first is not None:
            item, self._first = self._first, None
            return item
        if self._ended:
            raise StopAsyncIteration
        try:
            return await self._pull()
        except StopAsyncIteration:
            self._ended = True
            raise
        except BaseException as error:  # part of the boundary `Dispatcher._run`
            self._ended = True
            converted = self._convert(error)
            if converted is error:
                raise
            raise converted from error

    async def aclose(self, reason: str = "client_gone") -> None:
        """Run the author's `finally` blocks; idempotent. What they raise is logged: nobody is left to be told."""
        self._first = None
        self._ended = True
        # Closing a generator that never ran also keeps it from ever running.
        close = getattr(self._iterator if self._iterator is not None else self._source, "aclose", None)
        if close is None:
            return
        try:
            await close()
        except BaseException as error:  # part of the boundary `Dispatcher._run`
            if self._convert(error) is error and not isinstance(error, PluginError):
                raise

    async def _pull(self) -> StreamItem:
        if self._iterator is None:
            self._iterator = aiter(self._source)
        while True:
            value = await anext(self._iterator)
            if isinstance(value, Usage):
                self.usage = value
                continue
            item = to_item(value)
            if type(item.body) is not Body and item.body is not UNSET:
                item = tidy(item)
            if not item.is_progress:
                self._check_kind(item)
            return item

    def _check_kind(self, item: StreamItem) -> None:
        is_raw = item.raw is not UNSET
        if self._is_raw is None:
            self._is_raw = is_raw
        elif self._is_raw is not is_raw:
            raise PluginError("a stream is all events or all raw data, this one mixed them")


class PassedItems:
    """An upstream's answer that an author passes on as it is: its pieces as raw items, without any code of the author.

    Whoever knows the `source` may as well iterate over that.
    """

    def __init__(self, stream: HttpStream, *, usage: Usage | None) -> None:
        self.usage = usage
        self.source: Final = stream.items
        self._iterator: Final = aiter(self.source)

    def __aiter__(self) -> AsyncIterator[StreamItem]:
        return self._iterator

    def __anext__(self) -> Awaitable[StreamItem]:
        return self._iterator.__anext__()

    async def aclose(self, reason: str = "client_gone") -> None:
        """Stop the transfer; idempotent."""
        await self.source.aclose(reason)


def log_exception(error: BaseException, method: str, ctx: Context) -> None:
    """Log an author's exception with its traceback; clients only see the class name."""
    ctx.log.error("plugin.exception", method=method, error=type(error).__name__, traceback=author_traceback(error))


def author_traceback(error: BaseException) -> str:
    """The traceback without this module's own frames, so that the author's code comes first."""
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename in _OWN_FILES and here.tb_next is not None:
        here = here.tb_next
    return "".join(traceback.format_exception(type(error), error, here))


_OWN_FILES: Final = frozenset({__file__, HookThreads.run.__code__.co_filename})


def _answer(spec: MethodSpec, value: Any) -> DispatchReply:
    usage = None
    if value.__class__ is not spec.response:
        if isinstance(value, Reply):
            value, usage = value.result, value.usage
        if value is None:
            return DispatchReply(None, usage)
        if not isinstance(value, spec.response):
            raise PluginError(
                f"{spec.name} answered {_described(value)}; it answers {spec.response.__name__} or nothing"
            )
    try:
        value = tidy(value)
    except TypeError as error:
        raise PluginError(f"{spec.name} answered {spec.response.__name__} with a mistake in {error}") from error
    return DispatchReply(value, usage)


def _unimplemented(method: str) -> DispatchReply:
    if method == "plugin.register":
        return DispatchReply(RegisterResponse())
    if method == "plugin.shutdown":
        return DispatchReply(Empty())
    raise PluginError(ErrorBody(message=f"this plugin has no {method}", code="method_not_found", http_status=500))


def _by_position(hook: Callable[..., Any]) -> _Hook:
    """The arguments by opt-in become a fixed order, once, so that a call costs no keyword handling."""
    match tuple(inspect.signature(hook).parameters):
        case ("request", "ctx"):
            return hook
        case ("request",):
            return lambda params, ctx: hook(params)
        case ("ctx", "request"):
            return lambda params, ctx: hook(ctx, params)
        case ("ctx",):
            return lambda params, ctx: hook(ctx)
        case _:
            return lambda params, ctx: hook()


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _described(value: object) -> str:
    return "nothing" if value is None else type(value).__name__

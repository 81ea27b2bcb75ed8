"""An example inside this process, called through the dispatcher as the host's in-process runtime does."""

import importlib.util
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pluginabi.body import StreamItem
from pluginabi.errors import PluginError, normalised
from pluginabi.frames import Usage
from pluginabi.methods import PLUGIN_METHODS
from pluginabi.payloads.common import Payload
from pluginabi.payloads.lifecycle import RegisterRequest
from pluginapi import Context, Dispatcher, Plugin
from pluginapi.answers import to_item
from pluginapi.testing import FakeHost


def load_class(directory: Path, entry: str) -> type[Plugin]:
    """The class an example's manifest names, from a module that no other test shares."""
    module_name, _, class_name = entry.partition(":")
    unique = f"example_{module_name}"
    spec = importlib.util.spec_from_file_location(unique, directory / f"{module_name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[unique] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: type[Plugin] = getattr(module, class_name)
    assert issubclass(found, Plugin)
    return found


class DirectPort:
    """Callbacks as function calls to a fake host."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host

    async def call(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> Payload:
        return await self._host.answer(method, params)

    async def stream(self, method: str, params: Payload, *, timeout_ms: int | None = None) -> tuple[Payload, Any]:
        result = await self._host.answer(method, params)
        return result, _Items(self._host.script(method).items)

    def detached(self) -> Context:
        return Context(port=self)


class _Items:
    usage: Usage | None = None

    def __init__(self, values: Any) -> None:
        self._values = values

    async def __aiter__(self) -> AsyncIterator[StreamItem]:
        for value in self._values:
            yield to_item(value)

    async def aclose(self, reason: str = "client_gone") -> None: ...


class InProcess:
    """What `PluginUnderTest` is for a process."""

    def __init__(self, dispatcher: Dispatcher, host: FakeHost) -> None:
        self._dispatcher = dispatcher
        self._host = host

    async def reply(self, method: str, params: Payload | None = None) -> tuple[Any, Usage | None]:
        reply = await self._dispatch(method, params)
        result = reply.result if reply.result is not None else PLUGIN_METHODS[method].response()
        return result, reply.usage

    async def open_stream(self, method: str, params: Payload) -> tuple[Any, Any]:
        reply = await self._dispatch(method, params)
        return reply.result, reply.items

    async def _dispatch(self, method: str, params: Payload | None) -> Any:
        ctx = Context(port=DirectPort(self._host), permissions=self._host.permissions)
        try:
            return await self._dispatcher.dispatch(method, params or PLUGIN_METHODS[method].request(), ctx)
        except PluginError as error:
            raise PluginError(normalised(error.body, default_origin="plugin")) from error


@asynccontextmanager
async def in_process(plugin: type[Plugin], *, host: FakeHost, register: RegisterRequest) -> AsyncIterator[InProcess]:
    dispatcher = Dispatcher(plugin())
    running = InProcess(dispatcher, host)
    host.permissions = frozenset(register.permissions)
    await running.reply("plugin.register", register)
    yield running
    dispatcher.close()

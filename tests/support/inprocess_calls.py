"""One call of an in-process plugin, through the door that the pipeline uses."""

from typing import Any

from host.runtime.inprocess import InProcessPlugin
from host.runtime.invoke import Invoker
from host.runtime.scope import RequestScope
from pluginabi.payloads.executor import ExecutorRequest
from pluginabi.payloads.routing import ModelRouteRequest
from tests.support.runtime import binding


async def route(plugin: InProcessPlugin, request: Any = None, scope: RequestScope | None = None, **fields: Any) -> Any:
    wanted = binding(plugin, "model.route", **{"on_error": "fail", **fields})
    return await Invoker().call(wanted, lambda _: request or ModelRouteRequest(), scope)


async def stream(plugin: InProcessPlugin, **fields: Any) -> Any:
    wanted = binding(plugin, "executor.execute_stream", **fields)
    return await Invoker().stream(wanted, lambda _: ExecutorRequest(), None)

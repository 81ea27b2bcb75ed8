"""Plugins made of single hooks, called through the dispatcher."""

from pluginapi import (
    Body,
    Context,
    Dispatcher,
    ErrorBody,
    ExecutorRequest,
    ModelRouteRequest,
    Plugin,
)

LONG = ErrorBody(
    message="slow down",
    code="rate_limited",
    http_status=429,
    retryable=False,
    retry_after_ms=1500,
    scope="model",
    headers={"x-quota": ["0"]},
    body=Body.from_value({"error": "quota"}),
    body_protocol="openai",
    origin="upstream",
    details={"limit": 3},
)


def plugin_with(**hooks):
    """An instance of a plugin class made of these hooks."""
    return type("Made", (Plugin,), {"id": "made", **hooks})()


def logged(lines):
    return Context(log=lambda level, event, fields: lines.append((level, event, fields)))


async def route(hook, ctx=None):
    return await Dispatcher(plugin_with(model_route=hook)).dispatch(
        "model.route", ModelRouteRequest(), ctx or Context()
    )


async def stream(hook):
    dispatcher = Dispatcher(plugin_with(executor_execute_stream=hook))
    return await dispatcher.dispatch("executor.execute_stream", ExecutorRequest(), Context())

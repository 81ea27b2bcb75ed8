"""A plugin that errs on demand: the request's body says where and with what error object."""

from collections.abc import AsyncIterator

import msgspec

from pluginapi import (
    Body,
    Context,
    ErrorBody,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    ModelInfo,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Stream,
    StreamItem,
    serve,
)

ITEMS = 3


class Order(msgspec.Struct):
    """The client's body: where to err, and with what."""

    model: str
    boundary: str
    error: ErrorBody
    stream: bool = False


def order_of(request: ExecutorRequest) -> Order:
    """Decoded straight into structs, so that the error's own body keeps its bytes."""
    assert isinstance(request.body, Body)
    return msgspec.json.decode(request.body.to_bytes(), type=Order)


class ErrorOnDemand(Plugin):
    """Serves one model, named like the plugin."""

    async def plugin_register(self, request: RegisterRequest, ctx: Context) -> RegisterResponse:
        formats = ExecutorRegistration(input_formats=["openai"], output_formats=["openai"])
        return RegisterResponse(providers=[ctx.plugin_id], models=[ModelInfo(id=ctx.plugin_id)], executor=formats)

    async def executor_execute(self, request: ExecutorRequest, ctx: Context) -> ExecutorResponse:
        order = order_of(request)
        error = PluginError(order.error)
        if order.boundary == "plugin answer":
            raise error
        nested = Order(model=ctx.plugin_id, boundary="plugin answer", error=order.error)
        try:
            await ctx.model.execute(model=ctx.plugin_id, body=nested)
        except PluginError as caught:
            if order.boundary == "nested call":
                raise
            return ExecutorResponse(body=Body.from_value(caught.body))
        raise AssertionError("the callback did not err")

    async def executor_execute_stream(self, request: ExecutorRequest) -> Stream:
        order = order_of(request)
        if order.boundary == "stream opening":
            raise PluginError(order.error)
        return Stream(items=items(order))


async def items(order: Order) -> AsyncIterator[StreamItem]:
    """Three items; the error comes after the first one or after the last."""
    error = PluginError(order.error)
    for number in range(ITEMS):
        yield StreamItem(body=Body.from_value({"number": number}))
        if order.boundary == "mid-stream" and number == 0:
            raise error
    raise error


if __name__ == "__main__":
    serve(ErrorOnDemand)

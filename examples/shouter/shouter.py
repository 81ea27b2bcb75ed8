"""An executor over gRPC: answers with the last message in capitals, whole, streamed, or only counted.

Nothing here mentions gRPC: `protocol = "grpc"` in plugin.toml is the whole difference.
"""

from collections.abc import AsyncIterator
from typing import Any

from pluginapi import (
    Body,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    ModelRouteRequest,
    ModelRouteResponse,
    Plugin,
    RegisterRequest,
    RegisterResponse,
    Reply,
    Usage,
    serve,
)


class Shouter(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)))

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        return ModelRouteResponse(target_kind="self") if request.requested_model == "shouter" else None

    async def executor_execute(self, request: ExecutorRequest) -> Reply:
        text = _shouted(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        body = {**_head(request, "chat.completion"), "choices": [choice]}
        return Reply(ExecutorResponse(body=Body.from_value(body)), usage=_usage(text))

    async def executor_execute_stream(self, request: ExecutorRequest) -> AsyncIterator[dict[str, Any] | Usage]:
        text = _shouted(request)
        for position, letter in enumerate(text, start=1):
            choice = {"index": 0, "delta": {"content": letter}, "finish_reason": None}
            if position == len(text):
                choice["finish_reason"] = "stop"
            yield {**_head(request, "chat.completion.chunk"), "choices": [choice]}
        yield _usage(text)

    async def executor_count_tokens(self, request: ExecutorRequest) -> ExecutorResponse:
        return ExecutorResponse(body=Body.from_value({"input_tokens": len(_shouted(request).split())}))


def _shouted(request: ExecutorRequest) -> str:
    messages = request.body.value().get("messages", []) if request.body else []
    content = messages[-1].get("content") if messages else None
    return content.upper() + "!" if isinstance(content, str) else "WHAT?"


def _usage(text: str) -> Usage:
    return Usage(output_tokens=len(text.split()), total_tokens=len(text.split()))


def _head(request: ExecutorRequest, kind: str) -> dict[str, Any]:
    return {"id": f"shout-{request.request_id}", "object": kind, "created": 0, "model": request.requested_model}


if __name__ == "__main__":
    serve(Shouter)

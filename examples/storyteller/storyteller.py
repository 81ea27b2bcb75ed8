"""A model of its own: tells a story word by word, without any upstream. Speaks the OpenAI chat protocol."""

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
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Reply,
    Usage,
    serve,
)

STORY = "Once upon a time there was a jack that fitted every socket. It lived happily ever after."


class Storyteller(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(executor=ExecutorRegistration(input_formats=("openai",), output_formats=("openai",)))

    async def model_route(self, request: ModelRouteRequest) -> ModelRouteResponse | None:
        if request.requested_model != "storyteller":
            return None
        return ModelRouteResponse(target_kind="self", reason="this plugin is the model")

    async def executor_execute(self, request: ExecutorRequest) -> Reply:
        words = _words(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": "".join(words)}, "finish_reason": "stop"}
        body = {**_head(request, "chat.completion"), "choices": [choice]}
        return Reply(ExecutorResponse(body=Body.from_value(body)), usage=_usage(words))

    async def executor_execute_stream(self, request: ExecutorRequest) -> AsyncIterator[dict[str, Any] | Usage]:
        words = _words(request)
        for word in words:
            yield _chunk(request, {"content": word})
        yield _chunk(request, {}, finish_reason="stop")
        yield _usage(words)


def _words(request: ExecutorRequest) -> list[str]:
    """The story, as long as the client allows. Anything can fail with a status: the client gets exactly this one."""
    limit = request.body.value().get("max_tokens") if request.body else None
    if limit == 0:
        raise PluginError("a story needs at least one word", code="story_too_short", http_status=422, retryable=False)
    return [word + " " for word in STORY.split()[:limit]]


def _usage(words: list[str]) -> Usage:
    return Usage(input_tokens=0, output_tokens=len(words), total_tokens=len(words))


def _head(request: ExecutorRequest, kind: str) -> dict[str, Any]:
    return {"id": f"story-{request.request_id}", "object": kind, "created": 0, "model": request.requested_model}


def _chunk(request: ExecutorRequest, delta: dict[str, str], *, finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_head(request, "chat.completion.chunk"), "choices": [choice]}


if __name__ == "__main__":
    serve(Storyteller)

"""A small whole stream in every protocol, and what a client gets of it."""

import asyncio
import json

from host.config.model import Config, ModelEntry, ProviderKey
from pluginabi.errors import AbiError
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    client_request,
    compat_config,
    executor,
    world,
)


def sse(*documents: object, names: bool = False) -> bytes:
    out = b""
    for document in documents:
        if isinstance(document, bytes):
            out += document
            continue
        name = f"event: {document['type']}\n".encode() if names else b""  # type: ignore[index]
        out += name + b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
    return out


def chat_chunk(text: str, finish: str | None = None) -> dict[str, object]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


CHAT = sse(
    chat_chunk("hé"),
    chat_chunk("llo", "stop"),
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
    b"data: [DONE]\n\n",
)


CLAUDE = sse(
    {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 'say "usage":{'}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
    names=True,
)


RESPONSES = sse(
    {"type": "response.created", "response": {"id": "r", "usage": None}},
    {"type": "response.output_text.delta", "delta": "hello"},
    {"type": "response.completed", "response": {"id": "r", "usage": {"input_tokens": 3, "output_tokens": 5}}},
    names=True,
)


GEMINI = sse(
    {"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": {"promptTokenCount": 3}},
    {
        "candidates": [{"content": {"parts": [{"text": "b"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 5},
    },
)


STREAMS = {"openai": CHAT, "claude": CLAUDE, "openai-response": RESPONSES, "gemini": GEMINI}


def config_for(protocol: str, **fields: object) -> Config:
    if protocol in ("openai", "openai-response"):
        return compat_config(**fields)
    key = ProviderKey(api_key="k", models=[ModelEntry(name="m")])
    return Config(claude_api_key=[key], **fields)  # type: ignore[arg-type]


def watcher() -> FakePlugin:
    return FakePlugin(id="watcher", hooks={"usage.handle": lambda _: None, "request.complete": lambda _: None})


def one_stream(protocol: str, items: FakeItems, *plugins: FakePlugin, **fields: object) -> World:
    upstream = executor(stream=lambda _: items, providers=["openai-compatible-*", "claude"])
    return world(upstream, *plugins, config=config_for(protocol, **fields))


async def consume(w: World, protocol: str) -> tuple[bytes, AbiError | None]:
    """What a client gets: the bytes, and the error that ended the stream."""
    out, error = b"", None
    try:
        stream = await w.gateway.execute_stream(client_request(protocol=protocol, stream=True))
    except AbiError as refused:
        return out, refused
    try:
        async with asyncio.timeout(60):
            async for item in stream:
                out += item.raw.to_bytes()
    except AbiError as failed:
        error = failed
    await stream.aclose("finished" if error is None else "failed")
    return out, error

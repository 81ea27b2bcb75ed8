"""Answers and stream events of the three provider families, as their API references show them."""

import json
from collections.abc import Iterator
from typing import Any, Protocol
from urllib.parse import parse_qs

ToolCall = tuple[str, str] | None


def sse(document: Any, event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(document)}\n\n".encode()


class Shape(Protocol):
    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any: ...
    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]: ...
    def error_event(self, error: Any) -> bytes: ...


class OpenAIChat:
    def _head(self, model: str, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-up", "object": kind, "created": 1700000000, "model": model}

    def _calls(self, tool_call: tuple[str, str]) -> list[dict[str, Any]]:
        function = {"name": tool_call[0], "arguments": tool_call[1]}
        return [{"index": 0, "id": "call_1", "type": "function", "function": function}]

    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if tool_call:
            message = {"role": "assistant", "content": None, "tool_calls": self._calls(tool_call)}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if tool_call else "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        return {**self._head(model, "chat.completion"), "choices": [choice], "usage": usage}

    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]:
        head = self._head(model, "chat.completion.chunk")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"tool_calls": self._calls(tool_call)}] if tool_call else [{"content": w} for w in text.split(" ")]
        for delta in deltas:
            yield sse({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        reason = "tool_calls" if tool_call else "stop"
        yield sse({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        yield sse({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def error_event(self, error: Any) -> bytes:
        return sse(error if error is not None else {"error": {"message": "broken", "type": "server_error"}})


class OpenAIResponses:
    def _response(self, model: str, status: str, output: list[Any]) -> dict[str, Any]:
        return {
            "id": "resp_up",
            "object": "response",
            "created_at": 1700000000,
            "status": status,
            "model": model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 12,
            },
        }

    def _item(self, text: str, tool_call: ToolCall) -> dict[str, Any]:
        if tool_call:
            call = {"id": "fc_1", "type": "function_call", "call_id": "call_1", "status": "completed"}
            return {**call, "name": tool_call[0], "arguments": tool_call[1]}
        part = {"type": "output_text", "text": text, "annotations": []}
        return {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}

    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        return self._response(model, "completed", [self._item(text, tool_call)])

    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]:
        item = self._item(text, tool_call)
        documents: list[dict[str, Any]] = [
            {"type": "response.created", "response": self._response(model, "in_progress", [])},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
        ]
        place = {"item_id": item["id"], "output_index": 0}
        if tool_call:
            documents.append({"type": "response.function_call_arguments.delta", **place, "delta": tool_call[1]})
        else:
            documents += [
                {"type": "response.output_text.delta", **place, "content_index": 0, "delta": word, "logprobs": []}
                for word in text.split(" ")
            ]
        documents.append({"type": "response.output_item.done", "output_index": 0, "item": item})
        documents.append({"type": "response.completed", "response": self._response(model, "completed", [item])})
        for number, document in enumerate(documents):
            yield sse({**document, "sequence_number": number}, document["type"])

    def error_event(self, error: Any) -> bytes:
        document = {"type": "error", "code": "server_error", "message": "broken", "param": None, "sequence_number": 9}
        return sse(error if error is not None else document, "error")


class Claude:
    def _message(self, model: str) -> dict[str, Any]:
        return {"id": "msg_up", "type": "message", "role": "assistant", "model": model, "stop_sequence": None}

    def _block(self, text: str, tool_call: ToolCall) -> dict[str, Any]:
        if tool_call:
            return {"type": "tool_use", "id": "toolu_1", "name": tool_call[0], "input": json.loads(tool_call[1])}
        return {"type": "text", "text": text}

    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        reason = "tool_use" if tool_call else "end_turn"
        usage = {"input_tokens": 5, "output_tokens": 7}
        content = [self._block(text, tool_call)]
        return {**self._message(model), "content": content, "stop_reason": reason, "usage": usage}

    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]:
        start = {**self._message(model), "content": [], "stop_reason": None}
        start["usage"] = {"input_tokens": 5, "output_tokens": 1}
        opened = self._block("", ("", "{}") if tool_call else None)
        if tool_call:
            opened = {**opened, "name": tool_call[0]}
        documents: list[dict[str, Any]] = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": opened},
        ]
        if tool_call:
            deltas = [{"type": "input_json_delta", "partial_json": tool_call[1]}]
        else:
            deltas = [{"type": "text_delta", "text": word} for word in text.split(" ")]
        documents += [{"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas]
        documents.append({"type": "content_block_stop", "index": 0})
        stop = {"stop_reason": "tool_use" if tool_call else "end_turn", "stop_sequence": None}
        documents.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 7}})
        documents.append({"type": "message_stop"})
        for document in documents:
            yield sse(document, document["type"])

    def error_event(self, error: Any) -> bytes:
        document = {"type": "error", "error": {"type": "overloaded_error", "message": "broken"}}
        return sse(error if error is not None else document, "error")


class ClaudeCount(Claude):
    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        return {"input_tokens": 11}


class Gemini:
    def _chunk(self, model: str, part: dict[str, Any], *, last: bool) -> dict[str, Any]:
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
        chunk: dict[str, Any] = {"candidates": [candidate], "modelVersion": model, "responseId": "up"}
        if last:
            candidate["finishReason"] = "STOP"
            chunk["usageMetadata"] = {"promptTokenCount": 5, "candidatesTokenCount": 7, "totalTokenCount": 12}
        return chunk

    def _parts(self, text: str, tool_call: ToolCall) -> list[dict[str, Any]]:
        if tool_call:
            return [{"functionCall": {"name": tool_call[0], "args": json.loads(tool_call[1])}}]
        return [{"text": word} for word in text.split(" ")]

    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        part = self._parts(text, tool_call)[0] if tool_call else {"text": text}
        return self._chunk(model, part, last=True)

    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]:
        parts = self._parts(text, tool_call)
        for number, part in enumerate(parts, start=1):
            yield sse(self._chunk(model, part, last=number == len(parts)))

    def error_event(self, error: Any) -> bytes:
        document = {"error": {"code": 503, "message": "broken", "status": "UNAVAILABLE"}}
        return sse(error if error is not None else document)


class Fixed:
    """An endpoint with one answer and no stream."""

    def __init__(self, document: Any) -> None:
        self._document = document

    def answer(self, model: str, text: str, tool_call: ToolCall) -> Any:
        return {**self._document, "model": model} if "model" in self._document else self._document

    def events(self, model: str, text: str, tool_call: ToolCall) -> Iterator[bytes]:
        raise AssertionError("this endpoint does not stream")

    def error_event(self, error: Any) -> bytes:
        raise AssertionError("this endpoint does not stream")


OPENAI_EMBEDDING = Fixed(
    {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
        "model": "",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
)


def identify(path: str, body: bytes, query: str) -> tuple[Shape, str, bool]:
    """Which endpoint this is, for which model, and whether a stream is wanted."""
    if "/models/" in path:
        model, _, action = path.rpartition("/models/")[2].rpartition(":")
        stream = action == "streamGenerateContent" and parse_qs(query).get("alt") == ["sse"]
        fixed: dict[str, Shape] = {
            "countTokens": Fixed({"totalTokens": 11}),
            "embedContent": Fixed({"embedding": {"values": [0.5, -0.5]}}),
            "batchEmbedContents": Fixed({"embeddings": [{"values": [0.5, -0.5]}]}),
        }
        return fixed.get(action, Gemini()), model, stream
    document = json.loads(body) if body else {}
    model, stream = document.get("model", ""), document.get("stream") is True
    endpoints: list[tuple[str, Shape]] = [
        ("/messages/count_tokens", ClaudeCount()),
        ("/messages", Claude()),
        ("/responses/compact", Fixed({"id": "resp_c", "object": "response.compaction", "output": []})),
        ("/responses", OpenAIResponses()),
        ("/embeddings", OPENAI_EMBEDDING),
    ]
    shape = next((shape for suffix, shape in endpoints if path.endswith(suffix)), OpenAIChat())
    return shape, model, stream

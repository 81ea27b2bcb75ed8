"""A model that speaks a protocol of its own, `telegram`, and the hooks that let clients of the OpenAI protocol use it.

    client --openai--> request.normalize, request.translate --telegram--> executor
    client <--openai-- response.normalize_after, response.translate, response.normalize_before <--telegram-- executor

The translators are not tied to this executor: any plugin that declares the format `telegram` can be reached with them.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from pluginapi import (
    Body,
    ExecutorRegistration,
    ExecutorRequest,
    ExecutorResponse,
    ModelInfo,
    Plugin,
    PluginError,
    RegisterRequest,
    RegisterResponse,
    Reply,
    RequestTranslateRequest,
    RequestTranslateResponse,
    ResponseTranslateRequest,
    ResponseTranslateResponse,
    StreamItem,
    Usage,
    serve,
)

FORMAT = "telegram"
"""A request is `{"to", "lines": [{"who", "text"}], "limit"?}`, an answer `{"words": […], "charge": {"in", "out"}}`; a
stream has an event `word` per word and one event `charge`."""
OPENAI = "openai"


class Telegraph(Plugin):
    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        return RegisterResponse(
            models=(ModelInfo(id="telegraph", owned_by="telegraph"),),
            executor=ExecutorRegistration(input_formats=(FORMAT,), output_formats=(FORMAT,)),
        )

    # The executor: knows telegrams only.

    async def executor_execute(self, request: ExecutorRequest) -> Reply:
        words, charge = self._reply(request)
        answer = {"words": words, "charge": charge}
        return Reply(ExecutorResponse(body=Body.from_value(answer)), usage=_usage(charge))

    async def executor_execute_stream(self, request: ExecutorRequest) -> AsyncIterator[tuple[str, Any] | Usage]:
        words, charge = self._reply(request)
        for word in words:
            yield "word", {"word": word}
        yield "charge", {"charge": charge}
        yield _usage(charge)

    def _reply(self, request: ExecutorRequest) -> tuple[list[str], dict[str, int]]:
        telegram = request.body.value()
        lines = [line["text"].split() for line in telegram["lines"]]
        if not lines:
            raise PluginError("no message, no telegram", code="empty_telegram", http_status=422, retryable=False)
        office = str(self.config.get("office", "JACKFIELD"))
        words = [word.upper() for word in ("received", *lines[-1], "stop", office, "stop")][: telegram.get("limit")]
        return words, {"in": sum(map(len, lines)), "out": len(words)}

    # Requests, from openai to telegram.

    async def request_normalize(self, request: RequestTranslateRequest) -> RequestTranslateResponse | None:
        """Makes text of messages in parts, so that the translator has to know one form only."""
        if (request.from_format, request.to_format) != (OPENAI, FORMAT):
            return None
        chat = request.body.value()
        messages = [{**message, "content": _text(message.get("content"))} for message in chat.get("messages", ())]
        return RequestTranslateResponse(body=Body.from_value({**chat, "messages": messages}))

    async def request_translate(self, request: RequestTranslateRequest) -> RequestTranslateResponse | None:
        if (request.from_format, request.to_format) != (OPENAI, FORMAT):
            return None  # somebody else's pair
        chat = request.body.value()
        lines = [{"who": message["role"], "text": message["content"]} for message in chat["messages"]]
        telegram = {"to": request.model, "lines": lines}
        if (limit := chat.get("max_completion_tokens", chat.get("max_tokens"))) is not None:
            telegram["limit"] = limit
        return RequestTranslateResponse(body=Body.from_value(telegram))

    # Answers, from telegram to openai: `body` is a whole answer; a stream comes as `items`, some at a time.

    async def response_normalize_before(self, request: ResponseTranslateRequest) -> ResponseTranslateResponse | None:
        """Still a telegram: writes its STOPs as full stops."""
        if request.from_format != FORMAT:
            return None
        if not request.stream:
            answer = request.body.value()
            words = [_full_stop(word) for word in answer["words"]]
            return ResponseTranslateResponse(body=Body.from_value({**answer, "words": words}))
        return ResponseTranslateResponse(items=tuple(_map_word(item) for item in request.items))

    async def response_translate(self, request: ResponseTranslateRequest) -> ResponseTranslateResponse | None:
        if (request.from_format, request.to_format) != (FORMAT, OPENAI):
            return None
        if not request.stream:
            return ResponseTranslateResponse(body=Body.from_value(_completion(request)))
        # One item in, one item out; the call with `last` set has none, as nothing was held back.
        items = [_chunk(request, item, request.index + at) for at, item in enumerate(request.items)]
        return ResponseTranslateResponse(items=items)

    async def response_normalize_after(self, request: ResponseTranslateRequest) -> ResponseTranslateResponse | None:
        """Already an OpenAI answer: says which office wrote it."""
        if request.from_format != FORMAT:
            return None
        mark = {"system_fingerprint": self.config.get("office", "JACKFIELD")}
        if not request.stream:
            return ResponseTranslateResponse(body=Body.from_value({**request.body.value(), **mark}))
        marked = [StreamItem(body=Body.from_value({**item.body.value(), **mark})) for item in request.items]
        return ResponseTranslateResponse(items=marked)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    return content or ""


def _full_stop(word: str) -> str:
    return "." if word == "STOP" else f" {word}"


def _map_word(item: StreamItem) -> StreamItem:
    if item.event != "word":
        return item
    return StreamItem(event="word", body=Body.from_value({"word": _full_stop(item.body.value()["word"])}))


def _usage(charge: Mapping[str, int]) -> Usage:
    return Usage(input_tokens=charge["in"], output_tokens=charge["out"], total_tokens=charge["in"] + charge["out"])


def _openai_usage(charge: Mapping[str, int]) -> dict[str, int]:
    usage = _usage(charge)
    return {
        "prompt_tokens": usage.input_tokens or 0,
        "completion_tokens": usage.output_tokens or 0,
        "total_tokens": usage.total_tokens or 0,
    }


def _head(request: ResponseTranslateRequest, kind: str) -> dict[str, Any]:
    return {"id": f"telegram-{request.request_id}", "object": kind, "created": 0, "model": request.model}


def _completion(request: ResponseTranslateRequest) -> dict[str, Any]:
    answer = request.body.value()
    message = {"role": "assistant", "content": "".join(answer["words"]).strip()}
    return {
        **_head(request, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _openai_usage(answer["charge"]),
    }


def _chunk(request: ResponseTranslateRequest, item: StreamItem, index: int) -> StreamItem:
    event = item.body.value()
    chunk = _head(request, "chat.completion.chunk")
    if item.event == "charge":
        chunk["choices"] = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
        chunk["usage"] = _openai_usage(event["charge"])
    else:
        role = {"role": "assistant"} if index == 0 else {}
        delta = {**role, "content": event["word"].lstrip() if index == 0 else event["word"]}
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": None}]
    return StreamItem(body=Body.from_value(chunk))


if __name__ == "__main__":
    serve(Telegraph)

"""The demo's executor: answers with the last user text, plain or streamed word by word, in the client's protocol.

Shapes of the answers: OpenAI API reference (chat, responses, embeddings), Anthropic API reference (messages,
streaming), Gemini API reference (generateContent, countTokens, embedContent).
"""

import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

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
    Stream,
    StreamItem,
    Usage,
    serve,
)

Document: TypeAlias = dict[str, Any]
Event: TypeAlias = tuple[str | None, Document]
EMBEDDING_DIMENSIONS: Final = 16

MODEL: Final = ModelInfo(
    id="echo",
    owned_by="jackfield",
    display_name="Echo",
    description="Repeats the last user text.",
    context_length=128_000,
    max_completion_tokens=64_000,
    supported_generation_methods=("generateContent", "streamGenerateContent", "countTokens", "embedContent"),
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What is needed to answer: the model as the client wrote it, the text to repeat, an id to derive ids from."""

    model: str
    text: str
    request_id: str
    include_usage: bool = False
    """OpenAI chat streams carry usage only when `stream_options.include_usage` asks for it."""

    @property
    def words(self) -> list[str]:
        """The text in pieces that add up to it; a demo's tokens."""
        return words_of(self.text)

    @property
    def tokens(self) -> int:
        return len(self.words)


def words_of(text: str) -> list[str]:
    """The text in pieces that add up to it; a demo's tokens."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text) or ([text] if text else [])


class Shape(Protocol):
    """One protocol."""

    def last_user_text(self, document: Document) -> str | None: ...
    def answer(self, conversation: Conversation) -> Document: ...
    def stream(self, conversation: Conversation) -> Iterator[Event]: ...
    def count(self, conversation: Conversation) -> Document: ...


def text_of(content: Any) -> str:
    """The text of a content field: a string, or a list of parts with `text`."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else part.get("text", "") for part in parts if isinstance(part, (str, dict))]
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def last_user_message(messages: Any, *, content_key: str = "content") -> str | None:
    """Text of the last message whose role is user (or absent)."""
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role", "user") == "user":
            return text_of(message.get(content_key))
    return None


class OpenAIChat:
    """Chat Completions."""

    def last_user_text(self, document: Document) -> str | None:
        return last_user_message(document.get("messages"))

    def answer(self, conversation: Conversation) -> Document:
        message = {"role": "assistant", "content": conversation.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        return {**self._head(conversation, "chat.completion"), "choices": [choice], "usage": self._usage(conversation)}

    def stream(self, conversation: Conversation) -> Iterator[Event]:
        head = self._head(conversation, "chat.completion.chunk")

        def chunk(delta: Document, finish_reason: str | None) -> Event:
            return None, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}

        yield chunk({"role": "assistant", "content": ""}, None)
        for word in conversation.words:
            yield chunk({"content": word}, None)
        yield chunk({}, "stop")
        if conversation.include_usage:
            yield None, {**head, "choices": [], "usage": self._usage(conversation)}

    def count(self, conversation: Conversation) -> Document:
        return {"total_tokens": conversation.tokens}

    def _head(self, conversation: Conversation, kind: str) -> Document:
        return {
            "id": f"chatcmpl-{conversation.request_id}",
            "object": kind,
            "created": int(time.time()),
            "model": conversation.model,
        }

    def _usage(self, conversation: Conversation) -> Document:
        tokens = conversation.tokens
        return {"prompt_tokens": tokens, "completion_tokens": tokens, "total_tokens": 2 * tokens}


class OpenAIResponses:
    """Responses."""

    def last_user_text(self, document: Document) -> str | None:
        given = document.get("input")
        return given if isinstance(given, str) else last_user_message(given)

    def answer(self, conversation: Conversation) -> Document:
        item = self._item(conversation, "completed", conversation.text)
        return self._response(conversation, "completed", [item])

    def stream(self, conversation: Conversation) -> Iterator[Event]:
        for number, document in enumerate(self._events(conversation)):
            yield document["type"], {**document, "sequence_number": number}

    def _events(self, conversation: Conversation) -> Iterator[Document]:
        place = {"item_id": f"msg_{conversation.request_id}", "output_index": 0, "content_index": 0}
        empty = {"type": "output_text", "text": "", "annotations": []}
        full = {**empty, "text": conversation.text}
        done = self._item(conversation, "completed", conversation.text)
        started = self._response(conversation, "in_progress", [])
        yield {"type": "response.created", "response": started}
        yield {"type": "response.in_progress", "response": started}
        added = {**done, "status": "in_progress", "content": []}
        yield {"type": "response.output_item.added", "output_index": 0, "item": added}
        yield {"type": "response.content_part.added", **place, "part": empty}
        for word in conversation.words:
            yield {"type": "response.output_text.delta", **place, "delta": word, "logprobs": []}
        yield {"type": "response.output_text.done", **place, "text": conversation.text, "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": full}
        yield {"type": "response.output_item.done", "output_index": 0, "item": done}
        yield {"type": "response.completed", "response": self._response(conversation, "completed", [done])}

    def count(self, conversation: Conversation) -> Document:
        return {"object": "response.input_tokens", "input_tokens": conversation.tokens}

    def _item(self, conversation: Conversation, status: str, text: str) -> Document:
        part = {"type": "output_text", "text": text, "annotations": []}
        identity = {"id": f"msg_{conversation.request_id}", "type": "message", "role": "assistant"}
        return {**identity, "status": status, "content": [part]}

    def _response(self, conversation: Conversation, status: str, output: list[Document]) -> Document:
        tokens = conversation.tokens
        usage = {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2 * tokens,
        }
        return {
            "id": f"resp_{conversation.request_id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "model": conversation.model,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": usage if status == "completed" else None,
        }


class Claude:
    """Anthropic Messages."""

    def last_user_text(self, document: Document) -> str | None:
        return last_user_message(document.get("messages"))

    def answer(self, conversation: Conversation) -> Document:
        content = [{"type": "text", "text": conversation.text}]
        usage = {"input_tokens": conversation.tokens, "output_tokens": conversation.tokens}
        return {**self._message(conversation), "content": content, "stop_reason": "end_turn", "usage": usage}

    def stream(self, conversation: Conversation) -> Iterator[Event]:
        usage = {"input_tokens": conversation.tokens, "output_tokens": 0}
        message = {**self._message(conversation), "content": [], "stop_reason": None, "usage": usage}
        yield self._event({"type": "message_start", "message": message})
        block = {"type": "text", "text": ""}
        yield self._event({"type": "content_block_start", "index": 0, "content_block": block})
        for word in conversation.words:
            delta = {"type": "text_delta", "text": word}
            yield self._event({"type": "content_block_delta", "index": 0, "delta": delta})
        yield self._event({"type": "content_block_stop", "index": 0})
        stop = {"stop_reason": "end_turn", "stop_sequence": None}
        final = {"output_tokens": conversation.tokens}
        yield self._event({"type": "message_delta", "delta": stop, "usage": final})
        yield self._event({"type": "message_stop"})

    def count(self, conversation: Conversation) -> Document:
        return {"input_tokens": conversation.tokens}

    def _event(self, document: Document) -> Event:
        return document["type"], document

    def _message(self, conversation: Conversation) -> Document:
        return {
            "id": f"msg_{conversation.request_id}",
            "type": "message",
            "role": "assistant",
            "model": conversation.model,
            "stop_sequence": None,
        }


class Gemini:
    """Gemini generateContent."""

    def last_user_text(self, document: Document) -> str | None:
        contents = document.get("contents")
        if isinstance(contents, str):
            return contents
        return last_user_message(contents, content_key="parts")

    def answer(self, conversation: Conversation) -> Document:
        return self._chunk(conversation, conversation.text, last=True)

    def stream(self, conversation: Conversation) -> Iterator[Event]:
        words = conversation.words or [""]
        for number, word in enumerate(words, start=1):
            yield None, self._chunk(conversation, word, last=number == len(words))

    def count(self, conversation: Conversation) -> Document:
        return {"totalTokens": conversation.tokens}

    def _chunk(self, conversation: Conversation, text: str, *, last: bool) -> Document:
        candidate: Document = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        document: Document = {
            "candidates": [candidate],
            "modelVersion": conversation.model,
            "responseId": conversation.request_id,
        }
        if last:
            tokens = conversation.tokens
            candidate["finishReason"] = "STOP"
            document["usageMetadata"] = {
                "promptTokenCount": tokens,
                "candidatesTokenCount": tokens,
                "totalTokenCount": 2 * tokens,
            }
        return document


def embedding_of(text: Any) -> list[float]:
    """A vector that depends on nothing but the text. Raises PluginError 400 for anything else."""
    if not isinstance(text, str):
        raise no_text("there is no text to embed")
    digest = hashlib.sha256(text.encode()).digest()
    return [(byte - 127.5) / 127.5 for byte in digest[:EMBEDDING_DIMENSIONS]]


def openai_embeddings(model: str, document: Document) -> Document:
    """One vector per input: a string, or a list of strings or of lists of tokens."""
    given = document.get("input")
    texts = [each if isinstance(each, str) else str(each) for each in given] if isinstance(given, list) else [given]
    vectors = [embedding_of(text) for text in texts]
    entries = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors)]
    tokens = sum(len(words_of(str(text))) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": entries, "model": model, "usage": usage}


def gemini_embeddings(model: str, document: Document) -> Document:
    """One vector for embedContent, one per request for batchEmbedContents."""
    batch = document.get("requests")
    if not isinstance(batch, list):
        return {"embedding": {"values": gemini_vector(document)}}
    return {"embeddings": [{"values": gemini_vector(request)} for request in batch]}


def gemini_vector(request: Any) -> list[float]:
    """The vector of one embedContent request."""
    content = request.get("content") if isinstance(request, dict) else None
    return embedding_of(text_of(content.get("parts")) if isinstance(content, dict) else None)


PROTOCOLS: Final[dict[str, Shape]] = {
    "openai": OpenAIChat(),
    "openai-response": OpenAIResponses(),
    "claude": Claude(),
    "gemini": Gemini(),
}
EMBEDDERS: Final[dict[str, Callable[[str, Document], Document]]] = {
    "openai-embedding": openai_embeddings,
    "gemini-embedding": gemini_embeddings,
}


class Echo(Plugin):
    """Speaks every protocol itself, so the demo needs no translation."""

    id = "echo"
    version = "0.1.0"

    async def plugin_register(self, request: RegisterRequest) -> RegisterResponse:
        formats = [*PROTOCOLS, *EMBEDDERS]
        return RegisterResponse(
            providers=["echo"],
            models=[MODEL],
            executor=ExecutorRegistration(input_formats=formats, output_formats=formats),
        )

    async def executor_execute(self, request: ExecutorRequest) -> ExecutorResponse:
        if (embed := EMBEDDERS.get(request.format)) is not None:
            return ExecutorResponse(body=Body.from_value(embed(request.requested_model, document_of(request))))
        conversation = read(request)
        return ExecutorResponse(body=Body.from_value(PROTOCOLS[request.format].answer(conversation)))

    async def executor_execute_stream(self, request: ExecutorRequest) -> Stream:
        return Stream(items=events(PROTOCOLS[request.format].stream(read(request))))

    async def executor_count_tokens(self, request: ExecutorRequest) -> ExecutorResponse:
        conversation = read(request)
        return ExecutorResponse(body=Body.from_value(PROTOCOLS[request.format].count(conversation)))


def document_of(request: ExecutorRequest) -> Document:
    """The request's body; empty when it is no JSON object."""
    body: Any = request.body.value() if isinstance(request.body, Body) else None
    return body if isinstance(body, dict) else {}


def read(request: ExecutorRequest) -> Conversation:
    """What the client said. Raises PluginError 400 when there is no user text to repeat."""
    document = document_of(request)
    text = PROTOCOLS[request.format].last_user_text(document)
    if text is None:
        raise no_text("there is no user text to repeat")
    options = document.get("stream_options")
    return Conversation(
        model=request.requested_model,
        text=text,
        request_id=request.request_id,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def no_text(message: str) -> PluginError:
    """The refusal of a request that says nothing."""
    return PluginError(message, code="invalid_request", http_status=400, scope="request")


async def events(documents: Any) -> AsyncIterator[StreamItem | Usage]:
    """Stream items of (event name, document) pairs; each document is one complete event."""
    for event, document in documents:
        yield StreamItem(event=event, body=Body.from_value(document))


if __name__ == "__main__":
    serve(Echo)

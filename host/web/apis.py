"""The AI endpoints: how each reads its request. What they have in common is in `server.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from host.errors import RequestError
from host.pipeline.request import Operation
from host.web import chat_from_responses, completions
from host.web.body import Head, invalid, set_members
from host.web.frames import CHAT, CLAUDE, GEMINI, FrameWriter, GeminiArray, SseFrames
from host.web.render_errors import Family
from host.web.responses_stream import ResponsesFrames, is_codex_client
from pluginabi.immutable import Headers


class Inbound(Struct, frozen=True):
    """A request whose body is read and checked."""

    headers: Headers
    query: Headers
    rest: str
    """What follows the route's prefix, decoded; the Gemini model and method."""
    body: bytes
    head: Head


class Call(Struct, kw_only=True):
    """What the pipeline is asked, and how the answer is written."""

    protocol: str
    model: str
    body: bytes
    stream: bool = False
    operation: Operation = Operation.EXECUTE
    alt: str = ""
    keep_alive: bool = True
    """Whether newlines may be sent while a whole answer is awaited."""
    writer: Callable[[], FrameWriter] | None = None
    convert: Callable[[bytes], bytes] | None = None
    """Applied to a whole answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One AI endpoint."""

    label: str
    """Method and route template; for logs, metrics and metadata."""
    protocol: str
    family: Family
    read: Callable[[Inbound], Call]
    body_required: bool = True


def _chat_frames() -> FrameWriter:
    return SseFrames(CHAT)


def _claude_frames() -> FrameWriter:
    return SseFrames(CLAUDE)


def _gemini_frames() -> FrameWriter:
    return SseFrames(GEMINI)


def alt_of(query: Headers) -> str:
    """The query's `alt`, or `$alt` when that is absent; `sse` is the same as none."""
    if not query:
        return ""
    values = query.get("alt") or query.get("$alt") or ("",)
    return "" if values[0].lower() == "sse" else values[0]


def read_chat(inbound: Inbound) -> Call:
    """Chat Completions; a body in the shape of the Responses API is converted first."""
    head, body = inbound.head, inbound.body
    if not head.messages and (head.input or head.instructions):
        body = chat_from_responses.convert(body)
    return Call(
        protocol="openai",
        model=head.model_name(),
        body=body,
        stream=head.wants_stream,
        alt=alt_of(inbound.query),
        writer=_chat_frames,
    )


def read_completions(inbound: Inbound) -> Call:
    """Legacy text completions, mapped onto chat."""
    return Call(
        protocol="openai",
        model=inbound.head.model_name(),
        body=completions.to_chat(inbound.body),
        stream=inbound.head.wants_stream,
        writer=completions.CompletionFrames,
        convert=completions.from_chat,
    )


def read_responses(inbound: Inbound) -> Call:
    """The Responses API."""
    codex_client = is_codex_client(inbound.headers)
    return Call(
        protocol="openai-response",
        model=inbound.head.model_name(),
        body=inbound.body,
        stream=inbound.head.wants_stream,
        writer=lambda: ResponsesFrames(codex_client=codex_client),
    )


def read_compact(inbound: Inbound) -> Call:
    """Compaction of a Responses conversation: never a stream."""
    if inbound.head.wants_stream:
        raise invalid("'stream' is not supported by /v1/responses/compact", param="stream")
    body = set_members(inbound.body, stream=None) if inbound.head.stream else inbound.body
    return Call(protocol="openai-response", model=inbound.head.model_name(), body=body, alt="responses/compact")


def read_embeddings(inbound: Inbound) -> Call:
    """OpenAI embeddings."""
    return Call(protocol="openai-embedding", model=inbound.head.model_name(), body=inbound.body)


def read_messages(inbound: Inbound) -> Call:
    """Anthropic Messages."""
    stream = inbound.head.wants_stream
    return Call(
        protocol="claude",
        model=inbound.head.model_name(),
        body=inbound.body,
        stream=stream,
        alt="" if stream else alt_of(inbound.query),
        writer=_claude_frames,
    )


def read_count_tokens(inbound: Inbound) -> Call:
    """Anthropic token counting."""
    return Call(
        protocol="claude",
        model=inbound.head.model_name(),
        body=inbound.body,
        operation=Operation.COUNT,
        alt=alt_of(inbound.query),
        keep_alive=False,
    )


def read_gemini(inbound: Inbound) -> Call:
    """Gemini actions: the path names model and method, the body neither."""
    model, method = gemini_action(inbound.rest)
    call = Call(protocol="gemini", model=model, body=inbound.body, alt=alt_of(inbound.query))
    match method:
        case "generateContent":
            pass
        case "streamGenerateContent":
            call.stream = True
            call.writer = GeminiArray if call.alt else _gemini_frames
        case "countTokens":
            call.operation = Operation.COUNT
            call.keep_alive = False
        case _:
            # Nothing but the method says whether one text or a batch is to be embedded.
            call.protocol = "gemini-embedding"
            call.alt = method
    return call


GEMINI_METHODS: Final = (
    "generateContent",
    "streamGenerateContent",
    "countTokens",
    "embedContent",
    "batchEmbedContents",
)


def gemini_action(rest: str) -> tuple[str, str]:
    """Model and method of `<model>:<method>`; the model may hold slashes and a suffix. Raises RequestError 404."""
    parts = rest.removeprefix("/").split(":")
    if len(parts) == 2 and parts[0] and parts[1] in GEMINI_METHODS:
        return parts[0], parts[1]
    raise RequestError(404, "not_found", f"there is no action {rest!r}; expected <model>:<{'|'.join(GEMINI_METHODS)}>")


CHAT_API: Final = Api(label="POST /v1/chat/completions", protocol="openai", family=Family.OPENAI, read=read_chat)
COMPLETIONS_API: Final = Api(
    label="POST /v1/completions", protocol="openai", family=Family.OPENAI, read=read_completions
)
RESPONSES_API: Final = Api(
    label="POST /v1/responses", protocol="openai-response", family=Family.RESPONSES, read=read_responses
)
COMPACT_API: Final = Api(
    label="POST /v1/responses/compact", protocol="openai-response", family=Family.RESPONSES, read=read_compact
)
EMBEDDINGS_API: Final = Api(
    label="POST /v1/embeddings", protocol="openai-embedding", family=Family.OPENAI, read=read_embeddings
)
MESSAGES_API: Final = Api(label="POST /v1/messages", protocol="claude", family=Family.CLAUDE, read=read_messages)
COUNT_TOKENS_API: Final = Api(
    label="POST /v1/messages/count_tokens", protocol="claude", family=Family.CLAUDE, read=read_count_tokens
)
GEMINI_API: Final = Api(
    label="POST /v1beta/models/{model}",
    protocol="gemini",
    family=Family.GEMINI,
    read=read_gemini,
    body_required=False,
)

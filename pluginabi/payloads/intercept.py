"""Interceptors: request.intercept_*, request.complete, response.intercept_* (spec plugin-abi 4.3, 4.5, 10.2, 10.3)."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from msgspec import UNSET, Raw, UnsetType, field

from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginabi.frames import Usage
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.common import BodyParts, CredentialHandle, Items, Payload, RequestBound, StreamEnd, Termination

Outcome: TypeAlias = Literal["succeeded", "failed", "rejected", "canceled"]


class RequestInterceptRequest(RequestBound, frozen=True, kw_only=True):
    """request.intercept_before (once) and request.intercept_after (per attempt: with credential and `to_format`)."""

    source_format: str = ""
    to_format: str = ""
    model: str = ""
    requested_model: str = ""
    stream: bool = False
    credential: CredentialHandle | None = None
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    client_body: Body | UnsetType = UNSET
    body_parts: BodyParts = field(default_factory=dict)
    body_size: int = 0


class RequestInterceptResponse(Payload, frozen=True, kw_only=True):
    """A delta: `clear_headers` first, then `headers` (replace; `[]` clears), and either `body` or `patch` (RFC 7396).

    `terminate` ends the request with this response instead.
    """

    clear_headers: Sequence[str] = ()
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    patch: Raw | UnsetType = UNSET
    terminate: Termination | UnsetType = UNSET
    response_headers: Headers = field(default_factory=dict)
    """Added to the client's answer when it is a success, in place of headers of the same name."""


class ResponseInterceptRequest(RequestBound, frozen=True, kw_only=True):
    """response.intercept_after: a complete, successful, non-streamed answer."""

    source_format: str = ""
    model: str = ""
    requested_model: str = ""
    status: int = 200
    request_headers: Headers = field(default_factory=dict)
    headers: Headers = field(default_factory=dict)
    """The raw upstream headers, as changed by earlier interceptors."""
    metadata: Metadata = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    body_parts: BodyParts = field(default_factory=dict)
    body_size: int = 0
    request_body: Body | UnsetType = UNSET
    client_body: Body | UnsetType = UNSET


class ResponseInterceptResponse(Payload, frozen=True, kw_only=True):
    """A delta, as for requests."""

    clear_headers: Sequence[str] = ()
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    patch: Raw | UnsetType = UNSET


class StreamInterceptRequest(RequestBound, frozen=True, kw_only=True):
    """response.intercept_stream_chunk: index -1 is the header call, then items from index 0, in order.

    `last` marks the final call, whose `items` may be empty: what was held back can be flushed then.
    """

    source_format: str = ""
    model: str = ""
    requested_model: str = ""
    index: int = 0
    last: bool = False
    items: Items = ()
    request_headers: Headers = field(default_factory=dict)
    headers: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    history: Items = ()
    """What was already delivered: at most 64 items and 1 MiB, oldest dropped; only when `inputs` names it."""
    request_body: Body | UnsetType = UNSET
    """Only on the header call, and only when `inputs` names it."""
    client_body: Body | UnsetType = UNSET


class StreamInterceptResponse(Payload, frozen=True, kw_only=True):
    """`items` absent keeps them, `[]` drops them, more or fewer are fine. Headers count until the first byte."""

    clear_headers: Sequence[str] = ()
    headers: Headers = field(default_factory=dict)
    items: Items | UnsetType = UNSET
    end: StreamEnd | UnsetType = UNSET


class RequestCompleteRequest(RequestBound, frozen=True, kw_only=True):
    """request.complete: how the request ended; exactly once, after the last byte."""

    source_format: str = ""
    endpoint: str = ""
    model: str = ""
    requested_model: str = ""
    stream: bool = False
    outcome: Outcome = "succeeded"
    status: int = 0
    """What the client got; 0 when it left before a status."""
    error: ErrorBody | None = None
    started_at: str = ""
    completed_at: str = ""
    duration_ms: float = 0.0
    usage: Usage | None = None
    metadata: Metadata = field(default_factory=dict)

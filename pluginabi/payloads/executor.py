"""executor.* (spec plugin-abi 2.3 and 5)."""

from collections.abc import Mapping
from typing import Any

from msgspec import UNSET, UnsetType, field

from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.common import BodyParts, CredentialHandle, Payload, RequestBound


class ExecutorRequest(RequestBound, frozen=True, kw_only=True):
    """executor.execute, executor.execute_stream and executor.count_tokens.

    `body` is in `source_format`; the answer must be in `format`. `model` is what to ask the upstream for (the
    credential's prefix removed, aliases applied), `requested_model` what the client wrote.
    """

    model: str = ""
    requested_model: str = ""
    source_format: str = ""
    format: str = ""
    stream: bool = False
    alt: str = ""
    credential: CredentialHandle | None = None
    """Absent when a router chose this executor directly."""
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    metadata: Metadata = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    client_body: Body | UnsetType = UNSET
    body_parts: BodyParts = field(default_factory=dict)
    body_size: int = 0


class ExecutorResponse(Payload, frozen=True, kw_only=True):
    """The answer. For `executor.execute_stream` leaves out `body`: items follow. Status 200 to 299."""

    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    metadata: Mapping[str, Any] = field(default_factory=dict)


class ExecutorHttpRequest(Payload, frozen=True, kw_only=True):
    """executor.http_request: send this request with that credential. No endpoint of the host asks for it so far."""

    credential: CredentialHandle
    method: str = "GET"
    url: str = ""
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class ExecutorHttpResponse(Payload, frozen=True, kw_only=True):
    """Any status is an answer; 0 counts as 200."""

    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class ExecutorPrepareRequest(RequestBound, frozen=True, kw_only=True):
    """executor.prepare: get this credential ready before the first request that uses it.

    Asked once per credential as it is, and again after it changed or was refused. An error counts as a failed attempt.
    """

    credential: CredentialHandle
    model: str = ""


class ExecutorExhaustedRequest(RequestBound, frozen=True, kw_only=True):
    """executor.on_exhausted: every credential failed or rests. Asked once per request, after the last round."""

    provider: str = ""
    model: str = ""
    metadata: Metadata = field(default_factory=dict)
    error: ErrorBody | UnsetType = UNSET
    """What the client gets when there is no further round."""


class ExecutorExhaustedResponse(Payload, frozen=True, kw_only=True):
    """`retry` asks for one more round after `retry_after_ms`, which the operator's `max-retry-interval` limits."""

    retry: bool = False
    retry_after_ms: int | None = None

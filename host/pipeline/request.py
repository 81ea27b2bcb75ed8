"""What web hands to the pipeline and what it gets back."""

from collections.abc import AsyncIterator, Mapping
from enum import StrEnum
from typing import Final, Protocol

from msgspec import Struct, field

from pluginabi.body import StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import EMPTY_HEADERS, Headers


class Operation(StrEnum):
    """What is asked of the executor."""

    EXECUTE = "execute"
    COUNT = "count"


class Principal(Struct, frozen=True, kw_only=True):
    """The authenticated client."""

    name: str
    """Name of the key (or a frontend-auth principal); shown in logs, usage and metadata."""
    provider: str
    """`config-api-key`, `plugin:<plugin id>:<auth id>`, `anonymous`, or `plugin` for a nested call."""
    scope: str = ""
    """One-way hash of the principal: caches and sessions of different callers never mix."""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Demands(Struct, frozen=True, kw_only=True):
    """What an endpoint asks of the credentials that may serve a request. Plugins see it in the metadata."""

    pinned_auth_id: str = ""
    """The only credential that may serve it; empty: any. There is no falling back to another."""
    disallow_free_auth: bool = False
    """Accounts of a free plan cannot do it."""
    websocket: bool = False
    """It came over a WebSocket: credentials with `websockets` are preferred where their provider's executor says so."""
    execution_session_id: str = ""
    """What ties several requests together, such as the connection they came over."""


NO_DEMANDS: Final = Demands()


class ClientRequest(Struct, frozen=True, kw_only=True):
    """One authenticated request of a client, body read once and known to be JSON in valid UTF-8 (or empty)."""

    request_id: str
    protocol: str
    """`openai`, `openai-response`, `claude`, `gemini`, `openai-embedding`, `gemini-embedding`."""
    operation: Operation = Operation.EXECUTE
    endpoint: str
    """Method and route template, e.g. `POST /v1/chat/completions`; for logs and metadata, decides nothing."""
    model: str
    stream: bool
    body: bytes
    alt: str = ""
    headers: Headers = EMPTY_HEADERS
    """All inbound headers, client secrets included: they are hidden when a plugin's input is built."""
    query: Headers = EMPTY_HEADERS
    principal: Principal
    client_address: str = ""
    demands: Demands = NO_DEMANDS
    received_at_s: float = 0.0
    """Monotonic clock."""
    times_s: dict[str, float] | None = None
    """Where the time of each plugin is added up, when somebody wants to know."""


class ClientResponse(Struct, frozen=True, kw_only=True):
    """A complete answer. `headers` are already filtered: web adds its own and writes these."""

    status: int
    headers: Headers = EMPTY_HEADERS
    body: bytes = b""
    direct: bool = False
    """An interceptor's own response: written as it is, its content type included."""


class ClientStream(Protocol):
    """An opened stream whose first deliverable item is known: headers are final, the status is 200.

    Iteration yields items (all events or all raw, never progress) in order and ends cleanly or raises one error,
    which web writes in band.
    """

    headers: Headers
    usage: Usage | None

    @property
    def terminal_seen(self) -> bool:
        """Whether the end marker of the client's protocol (`[DONE]`, …) was among the raw bytes yielded."""

    def __aiter__(self) -> AsyncIterator[StreamItem]: ...

    async def aclose(self, reason: str = "client_gone") -> None:
        """Stop everything down to the upstream socket; idempotent. Always awaited by web, shielded from cancellation.

        Reason `client_gone` settles the request as canceled when it had not ended by itself.
        """

"""auth.* and frontend_auth.authenticate (spec plugin-abi 7.1 to 7.5)."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import UNSET, Raw, UnsetType, field

from pluginabi.body import Body
from pluginabi.immutable import Headers, Metadata
from pluginabi.payloads.common import CredentialRecord, HostSummary, Payload, RequestBound

Decision: TypeAlias = Literal["allow", "abstain", "deny"]


class AuthParseRequest(Payload, frozen=True, kw_only=True):
    """auth.parse: is this credential file yours? `file` is its JSON content."""

    provider: str = ""
    path: str = ""
    file_name: str = ""
    file: Raw | UnsetType = UNSET
    host: HostSummary = field(default_factory=HostSummary)


class AuthRecordsResponse(Payload, frozen=True, kw_only=True):
    """One record, or several (which makes each a virtual credential); none means *not mine*. A null is left out."""

    records: Sequence[CredentialRecord | None] = ()


class AuthLoginStartRequest(Payload, frozen=True, kw_only=True):
    """auth.login.start: begin a login; `callback_url` is where the provider may send the browser back to."""

    provider: str = ""
    callback_url: str = ""
    host: HostSummary = field(default_factory=HostSummary)


class AuthLoginStartResponse(Payload, frozen=True, kw_only=True):
    """The address for the operator's browser and the state (1 to 128 of `A-Z a-z 0-9 . _ -`) that identifies it."""

    url: str = ""
    state: str = ""
    user_code: str = ""
    """What the operator types in at `url`, where a code is asked for (RFC 8628)."""
    expires_at: str | None = None
    poll_after_ms: int | None = None
    """The first poll comes not before."""
    metadata: Metadata = field(default_factory=dict)
    """Given back in every poll; it stays in the host."""


class AuthLoginPollRequest(Payload, frozen=True, kw_only=True):
    """auth.login.poll: is the login done? `code` or `error` are set once the browser came back."""

    provider: str = ""
    state: str = ""
    code: str | None = None
    error: str | None = None
    metadata: Metadata = field(default_factory=dict)
    host: HostSummary = field(default_factory=HostSummary)


class AuthLoginPollResponse(Payload, frozen=True, kw_only=True):
    """pending (also when empty or unknown), success with records, or error with a message. A null is left out."""

    status: str = "pending"
    message: str = ""
    poll_after_ms: int | None = None
    """The next poll comes not before."""
    metadata: Metadata = field(default_factory=dict)
    """Replaces what later polls give back; empty keeps it."""
    records: Sequence[CredentialRecord | None] = ()


class AuthRefreshRequest(Payload, frozen=True, kw_only=True):
    """auth.refresh: renew this credential; carries its secrets."""

    credential: CredentialRecord
    host: HostSummary = field(default_factory=HostSummary)


class AuthRefreshResponse(Payload, frozen=True, kw_only=True):
    """Empty fields keep the existing values."""

    record: CredentialRecord | None = None
    next_refresh_after: str | None = None


class AuthSaveRequest(Payload, frozen=True, kw_only=True):
    """auth.save: the host is about to persist this record, after a login or a refresh.

    A plugin may answer what should be stored instead: the `storage` of its record is the file's whole new content.

    For one of several credentials of a file that is the only way to persist anything: the host does not know how the
    file is made.
    """

    record: CredentialRecord
    file: Raw | UnsetType = UNSET
    """The present content of the file, when there is one."""


class AuthSaveResponse(Payload, frozen=True, kw_only=True):
    """Empty keeps the record as it is."""

    record: CredentialRecord | None = None


class CredentialSourceRequest(RequestBound, frozen=True, kw_only=True):
    """credential_source.next: which credential, kept elsewhere, should serve this attempt?"""

    model: str = ""
    requested_model: str = ""
    source_format: str = ""
    stream: bool = False
    count: int = 1
    """1 for the first credential of the request, one more after each that failed."""
    session: str = ""
    """The same for requests of one session of one caller; empty when nothing tells."""
    headers: Headers = field(default_factory=dict)


class CredentialSourceResponse(Payload, frozen=True, kw_only=True):
    """A credential with its secrets in `storage`, as in a credential file; without `record` there is nothing available.

    That is an answer. A source that cannot be reached raises 503 `credential_source_unavailable`, with `retryable`.
    """

    record: CredentialRecord | None = None
    model: str = ""
    """The upstream's name of the model; empty: the client's."""


class FrontendAuthRequest(RequestBound, frozen=True, kw_only=True):
    """frontend_auth.authenticate: who is this client? Always sees the client's secrets; the body only on request."""

    method: str = ""
    path: str = ""
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    client_address: str = ""
    body: Body | UnsetType = UNSET
    """At most 1 MiB, only when `inputs` names it."""
    body_size: int = 0


class FrontendAuthResponse(Payload, frozen=True, kw_only=True):
    """allow with a principal, abstain, or deny, which ends the chain with `status` and `message`."""

    decision: Decision = "abstain"
    principal: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    status: int = 401
    message: str = ""

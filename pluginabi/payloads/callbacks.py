"""host.*: what a plugin may ask of the host (spec plugin-abi 7.8). Logging is the `log` frame."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import UNSET, Raw, UnsetType, field

from pluginabi.body import Body
from pluginabi.immutable import Headers
from pluginabi.payloads.common import Payload


class HttpRequest(Payload, frozen=True, kw_only=True):
    """host.http.do and host.http.do_stream. `credential` is a handle: the host attaches its secret and its proxy."""

    method: str = "GET"
    url: str = ""
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    credential: str | None = None
    decompress: bool = True


class HttpResponse(Payload, frozen=True, kw_only=True):
    """Any status is an answer; only a failed transfer is an error. Streamed: `body` is absent, raw items follow."""

    status: int = 0
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class ModelCallRequest(Payload, frozen=True, kw_only=True):
    """host.model.execute and host.model.execute_stream: run a model through the whole pipeline.

    `exit_protocol` empty means `entry_protocol`. Given headers or query replace the inherited ones.
    """

    entry_protocol: str = "openai"
    exit_protocol: str = ""
    model: str = ""
    body: Body | UnsetType = UNSET
    headers: Headers = field(default_factory=dict)
    query: Headers = field(default_factory=dict)
    alt: str = ""


class ModelCallResponse(Payload, frozen=True, kw_only=True):
    """What a client would have got. Streamed: `body` is absent, items follow."""

    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET


class AuthListRequest(Payload, frozen=True, kw_only=True):
    """host.auth.list (permission `auth.read`)."""


class AuthListResponse(Payload, frozen=True, kw_only=True):
    """One object per credential: what the management API lists, secrets masked."""

    files: Sequence[Mapping[str, Any]] = ()


class AuthGetRequest(Payload, frozen=True, kw_only=True):
    """host.auth.get and host.auth.get_runtime (permission `auth.read`)."""

    auth_index: str = ""


class AuthGetResponse(Payload, frozen=True, kw_only=True):
    """The credential's file."""

    auth_index: str = ""
    name: str = ""
    path: str = ""
    file: Raw | UnsetType = UNSET


class AuthGetRuntimeResponse(Payload, frozen=True, kw_only=True):
    """The list entry of one credential."""

    auth: Mapping[str, Any] = field(default_factory=dict)


class AuthSaveFileRequest(Payload, frozen=True, kw_only=True):
    """host.auth.save (permission `auth.write`): store a credential file."""

    name: str = ""
    file: Raw | UnsetType = UNSET


class AuthSaveFileResponse(Payload, frozen=True, kw_only=True):
    """Where it was stored."""

    name: str = ""
    path: str = ""


class KvGetRequest(Payload, frozen=True, kw_only=True):
    """host.kv.get (permission `kv`); keys are scoped to the plugin."""

    key: str


class KvGetResponse(Payload, frozen=True, kw_only=True):
    """`found` false is a miss; a failure of the store is an error, never a miss."""

    found: bool = False
    value: Raw | UnsetType = UNSET


class KvSetRequest(Payload, frozen=True, kw_only=True):
    """host.kv.set: store any JSON value, for `ttl_ms` if given, only when there is none if asked."""

    key: str
    value: Raw = field(default_factory=lambda: Raw(b"null"))
    ttl_ms: int | None = None
    only_if_absent: bool = False


class KvSetResponse(Payload, frozen=True, kw_only=True):
    """Whether the value was stored."""

    stored: bool = False


class KvDeleteRequest(Payload, frozen=True, kw_only=True):
    """host.kv.delete."""

    key: str


class KvDeleteResponse(Payload, frozen=True, kw_only=True):
    """Whether there was something to delete."""

    deleted: bool = False


class KvExpireRequest(Payload, frozen=True, kw_only=True):
    """host.kv.expire: set the remaining life of a key; absent removes the limit."""

    key: str
    ttl_ms: int | None = None


class KvExpireResponse(Payload, frozen=True, kw_only=True):
    """Whether the key exists."""

    found: bool = False


class KvIncrementRequest(Payload, frozen=True, kw_only=True):
    """host.kv.increment: add to an integer, 0 when absent; `ttl_ms` counts only when the key is created."""

    key: str
    by: int = 1
    ttl_ms: int | None = None


class KvIncrementResponse(Payload, frozen=True, kw_only=True):
    """The value after the addition."""

    value: int = 0

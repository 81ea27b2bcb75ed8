"""The eleven frames, a closed set. One JSON object per line (`kind` and `id` first), or one gRPC message."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import UNSET, Raw, Struct, UnsetType, field

from pluginabi.body import Body
from pluginabi.errors import ErrorBody
from pluginabi.limits import Limits

CancelReason: TypeAlias = Literal["client_gone", "deadline", "parent_closed", "shutdown"]


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Token counts of one generation; absent means unknown."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_creation_tokens: int | None = None
    total_tokens: int | None = None


class HostInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who the host is, in its hello."""

    name: str = "jackfield"
    version: str = ""


class _Frame(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    """Base of all frames; `kind` is the tag and always the first member."""


class Hello(_Frame, frozen=True, kw_only=True, tag="hello"):
    """The handshake, once from each side; a plugin's is constant.

    Required of a plugin: `abi`, `schema`, `plugin`, `capabilities`. Only the host sends `host`, `endpoint` (socket
    path) and `token`.
    """

    abi: Sequence[int]
    schema: int
    plugin: str | None = None
    version: str | None = None
    features: Sequence[str] = ()
    capabilities: Sequence[str] = ()
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_error: Mapping[str, str] = field(default_factory=dict)
    """Failure modes the plugin presets (`fail` or `skip`), below what its manifest and the operator say."""
    limits: Limits = field(default_factory=Limits)
    host: HostInfo | None = None
    endpoint: str | None = None
    token: str | None = None


class Call(_Frame, frozen=True, kw_only=True, tag="call"):
    """A request. `parent` (plugin to host only) is the id of the host's call this callback belongs to."""

    id: int
    method: str
    params: Raw = field(default_factory=lambda: Raw(b"{}"))
    stream: bool = False
    timeout_ms: int | None = None
    parent: int | None = None


class Result(_Frame, frozen=True, kw_only=True, tag="result"):
    """The envelope. With `stream` it opens a stream, otherwise it is the last frame of its call."""

    id: int
    ok: bool
    result: Raw | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET
    stream: bool = False
    usage: Usage | None = None


class Item(_Frame, frozen=True, kw_only=True, tag="item"):
    """One element of an open stream, in order."""

    id: int
    event: str | None = None
    body: Body | UnsetType = UNSET
    raw: Body | UnsetType = UNSET


class End(_Frame, frozen=True, kw_only=True, tag="end"):
    """The last frame of a stream."""

    id: int
    ok: bool
    error: ErrorBody | UnsetType = UNSET
    usage: Usage | None = None


class Cancel(_Frame, frozen=True, kw_only=True, omit_defaults=False, tag="cancel"):
    """The caller no longer wants the answer."""

    id: int
    reason: str = "client_gone"


class Credit(_Frame, frozen=True, kw_only=True, tag="credit"):
    """The caller consumed that much of the stream."""

    id: int
    items: int
    bytes: int


class Ping(_Frame, frozen=True, kw_only=True, tag="ping"):
    """Liveness; answered by the reader, independent of work in progress."""

    id: int


class Pong(_Frame, frozen=True, kw_only=True, tag="pong"):
    """Answer to a ping."""

    id: int
    loop_lag_ms: float | None = None


class Log(_Frame, frozen=True, kw_only=True, tag="log"):
    """A structured log line, attributed by the host to the plugin and, by `parent`, to a request."""

    level: str
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    parent: int | None = None


class Goaway(_Frame, frozen=True, kw_only=True, omit_defaults=False, tag="goaway"):
    """No new call but `plugin.shutdown`; what runs goes on. From a plugin: replace me."""

    reason: str = ""
    drain_ms: int = 0


Frame: TypeAlias = Hello | Call | Result | Item | End | Cancel | Credit | Ping | Pong | Log | Goaway
KINDS = ("hello", "call", "result", "item", "end", "cancel", "credit", "ping", "pong", "log", "goaway")

"""What can go wrong between host and plugin, and the error object that keeps its status on every path.

    AbiError
    ├── PluginError            the other side answered an error on purpose: its status and every field are kept
    └── PluginTransportError   the other side broke (or the road to it): never an answer, always 502, 503 or 504
        └── PluginTimeout      nothing came in time; 504

One reaction per class: `PluginError` is passed on as it is, `PluginTransportError` is turned into the host code that
belongs to its phase.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import UNSET, Struct, UnsetType, field
from msgspec.structs import replace

from pluginabi.body import Body
from pluginabi.immutable import Headers

Origin: TypeAlias = Literal["host", "plugin", "upstream"]
Scope: TypeAlias = Literal["request", "model", "credential", "provider", "connection"]
Phase: TypeAlias = Literal[
    "unavailable", "start", "hello", "send", "wait", "decode", "exit", "overload", "body_size", "stream"
]

DEFAULT_ERROR_CODE: Final = "plugin_error"
DEFAULT_MESSAGE: Final = "plugin call failed"

HOST_CODES: Final[Mapping[str, int]] = {
    "plugin_unavailable": 502,
    "plugin_crashed": 502,
    "plugin_protocol_error": 502,
    "plugin_timeout": 504,
    "plugin_overloaded": 503,
    "stream_overflow": 503,
    "plugin_body_too_large": 413,
    "cancelled": 499,
    "method_not_found": 500,
    "permission_denied": 500,
    "parent_closed": 500,
    "depth_exceeded": 500,
    "patch_not_applicable": 500,
}
"""The codes the host itself uses for plugin calls, with their statuses. `proto/README.md` prints this table."""

PHASE_CODES: Final[Mapping[str, str]] = {
    "unavailable": "plugin_unavailable",
    "start": "plugin_unavailable",
    "hello": "plugin_unavailable",
    "send": "plugin_crashed",
    "wait": "plugin_timeout",
    "decode": "plugin_protocol_error",
    "exit": "plugin_crashed",
    "overload": "plugin_overloaded",
    "body_size": "plugin_body_too_large",
    "stream": "stream_overflow",
}
"""What a broken plugin is called, by the phase in which it broke."""


class ErrorBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The error object of the envelope; the same on all six boundaries and all three carriers.

    `http_status` is 400 to 599. `retryable` absent means: decide by status. `headers` are lower-cased names to lists.
    `body` is sent verbatim only while the status line is open and `body_protocol` equals the client's protocol.
    """

    message: str = ""
    code: str = DEFAULT_ERROR_CODE
    http_status: int = 500
    retryable: bool | None = None
    retry_after_ms: int | None = None
    scope: str | None = None
    headers: Headers = field(default_factory=dict)
    body: Body | UnsetType = UNSET
    body_protocol: str | None = None
    origin: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def normalised(error: ErrorBody, *, default_origin: Origin) -> ErrorBody:
    """An error as received, made to fit the contract: blank message and code filled in, status 400 to 599.

    A status outside that range becomes 500 and stays readable in `details.http_status`. `origin` is set by the
    receiving host: a plugin may only claim `upstream`.
    """
    changes: dict[str, Any] = {}
    message = error.message.strip()
    if message != error.message or not message:
        changes["message"] = message or DEFAULT_MESSAGE
    if not error.code.strip():
        changes["code"] = DEFAULT_ERROR_CODE
    if not 400 <= error.http_status <= 599:
        changes["http_status"] = 500
        changes["details"] = {**error.details, "http_status": error.http_status}
    origin = "upstream" if error.origin == "upstream" and default_origin == "plugin" else default_origin
    if default_origin == "host" and error.origin is not None:
        origin = error.origin  # type: ignore[assignment]  # the host already said where it came from
    if origin != error.origin:
        changes["origin"] = origin
    return replace(error, **changes) if changes else error


class AbiError(Exception):
    """Base of everything that a plugin call can raise."""


class PluginError(AbiError):
    """An error that somebody answered on purpose. Every field of `body` survives every boundary."""

    def __init__(self, body: ErrorBody | str, /, **fields: Any) -> None:
        """Either a complete `ErrorBody`, or a message plus its fields: `PluginError("no", http_status=403)`.

        `body=` among the fields may be a `Body`, bytes, str or a JSON-like value.
        """
        if isinstance(body, str):
            if "body" in fields and not isinstance(fields["body"], Body):
                fields["body"] = _as_body(fields["body"])
            body = ErrorBody(message=body, **fields)
        super().__init__(body.message)
        self.body: Final = body

    @property
    def http_status(self) -> int:
        return self.body.http_status

    @property
    def code(self) -> str:
        return self.body.code


class PluginTransportError(AbiError):
    """The plugin broke: it is not there, exited, spoke nonsense, was full or silent."""

    def __init__(self, plugin_id: str, method: str, *, phase: Phase, cause: str) -> None:
        super().__init__(f"plugin {plugin_id!r}, {method}: {cause}")
        self.plugin_id: Final = plugin_id
        self.method: Final = method
        self.phase: Final = phase
        self.cause: Final = cause

    @property
    def code(self) -> str:
        return PHASE_CODES[self.phase]

    @property
    def http_status(self) -> int:
        return HOST_CODES[self.code]

    def to_error_body(self) -> ErrorBody:
        """The error object of the host code that belongs to this fault."""
        retry_after_ms = 1000 if self.http_status == 503 else None
        return ErrorBody(
            message=str(self),
            code=self.code,
            http_status=self.http_status,
            retry_after_ms=retry_after_ms,
            origin="host",
        )


class PluginTimeout(PluginTransportError):
    """The deadline of a call passed before its `result`."""

    def __init__(self, plugin_id: str, method: str, *, timeout_ms: int) -> None:
        super().__init__(plugin_id, method, phase="wait", cause=f"no answer within {timeout_ms} ms")
        self.timeout_ms: Final = timeout_ms


def host_error(code: str, message: str, **fields: Any) -> PluginError:
    """A `PluginError` with one of `HOST_CODES` and its status. Raises KeyError for an unknown code."""
    return PluginError(ErrorBody(message=message, code=code, http_status=HOST_CODES[code], origin="host", **fields))


def _as_body(value: Any) -> Body:
    if isinstance(value, bytes):
        return Body.from_bytes(value)
    if isinstance(value, str):
        return Body.from_bytes(value.encode())
    return Body.from_value(value)

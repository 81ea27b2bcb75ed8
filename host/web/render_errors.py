"""The one table that turns an error object into what a client family expects, before and after the first byte."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import UNSET

from host.observe.logs import redact
from host.web.headers import safe_headers
from pluginabi.errors import DEFAULT_ERROR_CODE, ErrorBody


class Family(StrEnum):
    """Whose error envelope a client reads."""

    OPENAI = "openai"
    RESPONSES = "openai-response"
    CLAUDE = "claude"
    GEMINI = "gemini"


@dataclass(frozen=True, slots=True)
class RenderedError:
    """An error as an HTTP response; `status` is 400 to 599, `body` is JSON."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all builders work from: the error object, completed by a body of another protocol."""

    status: int
    message: str
    type: str
    code: str
    param: str | None


_OPENAI_BY_STATUS: Final[Mapping[int, tuple[str, str]]] = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_quota"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
_CLAUDE_BY_STATUS: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_CLAUDE_TYPES: Final = frozenset({*_CLAUDE_BY_STATUS.values(), "invalid_request_error", "api_error"})
_GEMINI_BY_STATUS: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_RESPONSES_CODES: Final[Mapping[int, str]] = {
    401: "invalid_api_key",
    403: "insufficient_quota",
    404: "model_not_found",
    408: "request_timeout",
    429: "rate_limit_exceeded",
}
_UNSPECIFIC_CODES: Final = frozenset({"", DEFAULT_ERROR_CODE, "internal_error", "invalid_request_error"})
"""Codes that say less than the table's; any other code is the error's own and stays."""

MAX_MESSAGE_CHARS: Final = 2048
MAX_NAME_CHARS: Final = 256


def render_http(error: ErrorBody, family: Family, protocol: str, *, passthrough: bool = False) -> RenderedError:
    """`error` as a response while the status line is open.

    A body in the client's own protocol is sent as it is. Of the headers, those of the host and of plugins pass the
    filter, an upstream's only with `passthrough`; `Retry-After` always.
    """
    status = _status(error)
    body = _verbatim(error, protocol)
    if body is None:
        body = msgspec.json.encode(_envelope(_facts(error, status, family), family))
    return RenderedError(status, _headers(error, passthrough=passthrough), body)


def render_in_band(error: ErrorBody, family: Family) -> bytes:
    """The JSON of `error` inside a stream of chat, messages or Gemini; Responses has its own, see `responses_error`."""
    return msgspec.json.encode(_envelope(_facts(error, _status(error), family), family))


def responses_error(error: ErrorBody, sequence_number: int = 0) -> dict[str, Any]:
    """The payload of an `error` event of a Responses stream: a top-level `type`, never an `error` object."""
    status = _status(error)
    body = _json_object(error)
    message, code, sequence = _clean(error.message), "", max(sequence_number, 0)
    if error.code not in _UNSPECIFIC_CODES:
        code = error.code
    if body is not None:
        inner = body.get("error")
        sources = [body] if body.get("type") == "error" else []
        sources += [inner] if isinstance(inner, dict) else []
        for source in sources:
            message = _text(source.get("message")) or message
            code = _text(source.get("code")) or code
        given = body.get("sequence_number")
        if sources and sources[0] is body and not sequence and isinstance(given, int):
            sequence = max(given, 0)
        if sources and not code:
            code = "unknown_error"
    return {
        "type": "error",
        "code": (code or _responses_code(status))[:MAX_NAME_CHARS],
        "message": redact(message or _phrase(status))[:MAX_MESSAGE_CHARS],
        "sequence_number": sequence,
    }


def client_auth_legacy(error: ErrorBody) -> bytes:
    """`client-auth.error-envelope: legacy`: the same bare string for every family."""
    return msgspec.json.encode({"error": _clean(error.message) or _phrase(_status(error))})


def retry_after(error: ErrorBody) -> str | None:
    """The value of `Retry-After`: whole seconds, rounded up; else what the error's own headers say."""
    if error.retry_after_ms is not None and error.retry_after_ms >= 0:
        return str(math.ceil(error.retry_after_ms / 1000))
    values = error.headers.get("retry-after", ())
    return values[0] if values else None


def _status(error: ErrorBody) -> int:
    # A success status in an error would tell the client that nothing happened.
    return error.http_status if 400 <= error.http_status <= 599 else 500


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


def _headers(error: ErrorBody, *, passthrough: bool) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    if error.headers and (passthrough or error.origin != "upstream"):
        headers = [(name, value) for name, value in safe_headers(error.headers) if name.lower() != "retry-after"]
    wait = retry_after(error)
    if wait is not None:
        headers += safe_headers({"Retry-After": (wait,)})
    return headers


def _verbatim(error: ErrorBody, protocol: str) -> bytes | None:
    if error.body is UNSET or error.body_protocol is None:
        return None
    # Embeddings have the error envelope of their family.
    if error.body_protocol.removesuffix("-embedding") != protocol.removesuffix("-embedding"):
        return None
    return error.body.to_bytes() if _json_object(error) is not None else None


def _json_object(error: ErrorBody) -> dict[str, Any] | None:
    if error.body is UNSET:
        return None
    try:
        value = error.body.value()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str:
    """A string as it is, a number in digits, anything else as nothing."""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _clean(message: str) -> str:
    return redact(message.strip())


def _facts(error: ErrorBody, status: int, family: Family) -> _Facts:
    message, kind, code = _clean(error.message), "", ""
    if error.code not in _UNSPECIFIC_CODES:
        code = error.code
    param = error.details.get("param")
    body = _json_object(error)
    if body is not None:
        inner = body.get("error")
        source = inner if isinstance(inner, dict) else body
        message = _clean(_text(source.get("message")) or _text(source.get("code"))) or message
        kind = _text(source.get("type"))
        if (error.body_protocol or "openai").startswith("openai") and family is not Family.CLAUDE:
            code = _text(source.get("code")) or code
            param = source.get("param") or param
    return _Facts(status, message or _phrase(status), kind, code, param if isinstance(param, str) else None)


def _envelope(facts: _Facts, family: Family) -> dict[str, Any]:
    match family:
        case Family.CLAUDE:
            kind = facts.type if facts.type in _CLAUDE_TYPES else _claude_type(facts.status)
            return {"type": "error", "error": {"type": kind, "message": facts.message}}
        case Family.GEMINI:
            status = _GEMINI_BY_STATUS.get(facts.status, "INTERNAL" if facts.status >= 500 else "INVALID_ARGUMENT")
            return {"error": {"code": facts.status, "message": facts.message, "status": status}}
        case _:
            return {"error": _openai(facts)}


def _openai(facts: _Facts) -> dict[str, Any]:
    kind, code = _OPENAI_BY_STATUS.get(facts.status, ("invalid_request_error", ""))
    if facts.status >= 500:
        kind, code = "server_error", "internal_server_error"
    error: dict[str, Any] = {"message": facts.message, "type": kind}
    if facts.code or code:
        error["code"] = facts.code or code
    if facts.param is not None:
        error["param"] = facts.param
    return error


def _claude_type(status: int) -> str:
    return _CLAUDE_BY_STATUS.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _responses_code(status: int) -> str:
    if status in _RESPONSES_CODES:
        return _RESPONSES_CODES[status]
    return "internal_server_error" if status >= 500 else "invalid_request_error"

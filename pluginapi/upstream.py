"""Forwarding to an HTTP upstream: what an executor plugin needs to pass a request on and an answer back.

Bytes are not looked at: a body goes out as it came, a stream comes back as raw items. What is read is an error answer,
so that its status, body, scope and retry delay reach the host as one `PluginError`.
"""

import datetime
import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.immutable import Headers
from pluginabi.payloads.callbacks import HttpRequest
from pluginabi.payloads.executor import ExecutorRequest, ExecutorResponse
from pluginapi.answers import Stream, to_headers
from pluginapi.context import Context

__all__ = ["forward", "forward_stream", "has_quota_left", "request_headers", "retry_after_ms", "upstream_error"]

_NOT_FORWARDED: Final = frozenset(
    {
        # Hop by hop (RFC 9110 section 7.6.1), or computed anew for the upstream connection.
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"),
        *("transfer-encoding", "upgrade", "host", "content-length", "content-encoding", "expect"),
        # The host asks for encodings it can decode; what the client takes is between client and host.
        "accept-encoding",
        # Says where the client is, which is none of the upstream's business.
        *(
            "forwarded",
            "via",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-real-ip",
            "origin",
            "referer",
        ),
        # Set below.
        *("accept", "content-type"),
    }
)
_ACCEPT_ENCODING: Final = ("gzip, deflate, br, zstd",)
_JSON: Final = ("application/json",)
_EVENTS: Final = ("text/event-stream",)
_DURATION_UNIT_MS: Final = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4, "h": 3.6e6}
_MAX_MESSAGE_CHARACTERS: Final = 2048
_LIMIT: Final = re.compile(r"x-ratelimit-(remaining|reset)|anthropic-ratelimit-")
_UNIFIED_STATUS: Final = "anthropic-ratelimit-unified-status"
_UNIFIED_RESET: Final = "anthropic-ratelimit-unified-reset"
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FIRST_EPOCH_S: Final = 1e9
_FIRST_EPOCH_MS: Final = 1e12
"""From here on a number is a moment and no duration: 1e9 seconds are thirty years."""


def request_headers(client_headers: Headers, *, stream: bool) -> dict[str, Sequence[str]]:
    """The client's headers that concern the upstream, plus content type and accept. Secrets are already gone."""
    headers: dict[str, Sequence[str]] = {
        name: values for name, values in client_headers.items() if name not in _NOT_FORWARDED
    }
    headers["content-type"] = _JSON
    headers["accept"] = _EVENTS if stream else _JSON
    if not stream:
        # A compressed stream would reach the client in bursts, whenever the compressor has filled a block.
        headers["accept-encoding"] = _ACCEPT_ENCODING
    return headers


async def forward(
    request: ExecutorRequest, ctx: Context, *, url: str, protocol: str, extra_headers: Mapping[str, Sequence[str]] = {}
) -> ExecutorResponse:
    """Send the request's body to `url` with its credential and return the upstream's answer.

    Raises PluginError for a status outside 200 to 299, with the upstream's status, body, scope and retry delay, and for
    a failed transfer as `ctx.http.do` does. Cancelling closes the upstream connection.
    """
    answer = await ctx.http.send(_http_request(request, url, extra_headers, stream=False))
    if not 200 <= answer.status < 300:
        body = answer.body.to_bytes() if isinstance(answer.body, Body) else b""
        raise upstream_error(answer.status, answer.headers, body, protocol=protocol)
    return ExecutorResponse(status=answer.status, headers=answer.headers, body=answer.body)


async def forward_stream(
    request: ExecutorRequest, ctx: Context, *, url: str, protocol: str, extra_headers: Mapping[str, Sequence[str]] = {}
) -> Stream:
    """As `forward`, for a stream: returns when the upstream's head has arrived, items are the upstream's bytes."""
    answer = await ctx.http.open(_http_request(request, url, extra_headers, stream=True))
    if not 200 <= answer.status < 300:
        body = b"".join([piece async for piece in answer])
        raise upstream_error(answer.status, answer.headers, body, protocol=protocol)
    return Stream(items=answer, status=answer.status, headers=answer.headers)


def _http_request(
    request: ExecutorRequest, url: str, extra_headers: Mapping[str, Sequence[str]], *, stream: bool
) -> HttpRequest:
    headers = request_headers(request.headers, stream=stream)
    if extra_headers:
        headers.update(to_headers(extra_headers))
    return HttpRequest(
        method="POST",
        url=url,
        headers=headers,
        body=request.body,
        credential=request.credential.handle if request.credential is not None else None,
    )


def upstream_error(status: int, headers: Headers, body: bytes, *, protocol: str) -> PluginError:
    """The error of an upstream answer. A status outside 400 to 599 is an upstream that misbehaves: 502."""
    message, code = _message_and_code(body)
    http_status = status if 400 <= status <= 599 else 502
    return PluginError(
        ErrorBody(
            message=message or f"upstream answered {status}",
            code=code or "upstream_error",
            http_status=http_status,
            retry_after_ms=retry_after_ms(headers, body),
            scope=_SCOPES.get(http_status),
            headers=headers,
            body=_exact(body),
            body_protocol=protocol,
            origin="upstream",
            details={} if http_status == status else {"http_status": status},
        )
    )


_SCOPES: Final = {
    **dict.fromkeys((401, 402, 403), "credential"),
    **dict.fromkeys((404, 429), "model"),
    **dict.fromkeys((400, 409, 413, 422), "request"),
}


def _exact(body: bytes) -> Body:
    try:
        return Body(text=str(body, "utf-8"))
    except UnicodeDecodeError:
        return Body(base64=body)


def _message_and_code(body: bytes) -> tuple[str, str]:
    """What the families' error documents agree on: `error.message`, and `error.code`, `type` or `status`."""
    try:
        document = msgspec.json.decode(body)
    except _UNDECODABLE:
        return str(body[:_MAX_MESSAGE_CHARACTERS], "utf-8", "replace").strip(), ""
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, str):
        return error[:_MAX_MESSAGE_CHARACTERS], ""
    if not isinstance(error, dict):
        return "", ""
    code = next((error[key] for key in ("code", "type", "status") if isinstance(error.get(key), str)), "")
    message = error.get("message")
    return (message[:_MAX_MESSAGE_CHARACTERS] if isinstance(message, str) else ""), code


def retry_after_ms(headers: Headers, body: bytes = b"") -> int | None:
    """When the upstream says it may be asked again, in milliseconds from now; None when it does not say.

    In this order: `retry-after-ms`, `retry-after` (seconds or a date, RFC 9110 section 10.2.3), the latest
    `x-ratelimit-reset*` or `anthropic-ratelimit-*-reset` whose limit has nothing remaining, and Google's RetryInfo or
    quotaResetDelay in the body. One that says "now" leaves the word to the next: it was asked just now, and refused.
    What cannot be read says nothing.
    """
    found = None
    for said in (_retry_after_ms, _exhausted_reset_ms):
        if (delay := said(headers)) is not None and (found := delay) > 0:
            return delay
    delay = _google_delay_ms(body) if b"google.rpc" in body else None
    return found if delay is None else delay


def _retry_after_ms(headers: Headers) -> int | None:
    if (delay := _number(_first(headers, "retry-after-ms"))) is not None:
        return _whole_ms(delay)
    value = _first(headers, "retry-after")
    if (delay := _number(value)) is not None:
        return _whole_ms(delay * 1000)
    try:
        moment_s = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return _whole_ms((moment_s - time.time()) * 1000)


def has_quota_left(headers: Headers) -> bool:
    """Whether rate-limit headers are there and every one of them says that something remains."""
    left = [_first(headers, name) for name in headers if _LIMIT.match(name) and "remaining" in name]
    return bool(left) and all((_number(value) or 0) > 0 for value in left)


def _first(headers: Headers, name: str) -> str:
    values = headers.get(name)
    return values[0].strip() if values else ""


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value) else None


def _whole_ms(delay_ms: float) -> int:
    return max(0, int(-(-delay_ms // 1)))


def _exhausted_reset_ms(headers: Headers) -> int | None:
    delays = [
        delay
        for name in headers
        if _LIMIT.match(name) and "remaining" in name and _first(headers, name) == "0"
        if (delay := _reset_ms(_first(headers, name.replace("remaining", "reset")))) is not None
    ]
    if _first(headers, _UNIFIED_STATUS) == "rejected":
        delays += [delay] if (delay := _reset_ms(_first(headers, _UNIFIED_RESET))) is not None else []
    return max(delays, default=None)


def _reset_ms(text: str) -> int | None:
    """A reset as vendors write it: a duration, seconds, seconds or milliseconds since 1970, or an RFC 3339 time."""
    if re.fullmatch(r"\d{1,14}(\.\d+)?", text):
        value = float(text)
        if value >= _FIRST_EPOCH_MS:
            return _whole_ms(value - time.time() * 1000)
        return _whole_ms((value - time.time() if value >= _FIRST_EPOCH_S else value) * 1000)
    if (delay := _go_duration_ms(text)) is not None:
        return delay
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return _whole_ms((moment.timestamp() - time.time()) * 1000) if moment.tzinfo is not None else None


def _go_duration_ms(text: str) -> int | None:
    """A duration like `6m0s`, `479.417207ms` or `0.479417207s`; None when it is something else."""
    parts = re.findall(r"(\d{1,15}(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return _whole_ms(sum(float(number) * _DURATION_UNIT_MS[unit] for number, unit in parts))


def _google_delay_ms(body: bytes) -> int | None:
    try:
        document = msgspec.json.decode(body)
    except _UNDECODABLE:
        return None
    if isinstance(document, list) and document:
        document = document[0]
    error = document.get("error") if isinstance(document, dict) else None
    details = error.get("details") if isinstance(error, dict) else None
    found: dict[str, Any] = {}
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            found.setdefault(str(detail.get("@type", "")).rpartition("google.rpc.")[2], detail)
    if isinstance(delay := found.get("RetryInfo", {}).get("retryDelay"), str) and delay:
        return _go_duration_ms(delay)
    metadata = found.get("ErrorInfo", {}).get("metadata")
    delay = metadata.get("quotaResetDelay") if isinstance(metadata, dict) else None
    return _go_duration_ms(delay) if isinstance(delay, str) else None

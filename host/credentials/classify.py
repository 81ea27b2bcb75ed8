"""What a failed attempt means: may another credential be tried, and for how long does this one rest?

Decided by structure only: status, `retryable`, `scope`, `retry_after_ms` and the machine-readable code and type of an
upstream's error body; never by text (spec credentials 5 and 12.2, design: Errors).
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from pluginabi.errors import ErrorBody

UNAUTHORIZED_COOLDOWN_S: Final = 30 * 60.0
PAYMENT_COOLDOWN_S: Final = 30 * 60.0
NOT_FOUND_COOLDOWN_S: Final = 12 * 3600.0
TRANSIENT_COOLDOWN_S: Final = 60.0
MAX_RETRY_AFTER_S: Final = 24 * 3600.0
"""An upstream's hint is believed up to a day: a wrong one must not disable a credential for weeks."""

REQUEST_FAULT_STATUSES: Final = frozenset({400, 409, 413, 422})
REQUEST_FAULT_CODES: Final = frozenset(
    {
        "cyber_policy",
        "context_length_exceeded",
        "message_too_big",
        "string_above_max_length",
        "invalid_prompt",
        "invalid_value",
        "unsupported_value",
        "invalid_request_error",
        "previous_response_not_found",
    }
)
REQUEST_FAULT_TYPES: Final = frozenset(
    {"invalid_request", "invalid_request_error", "bad_request_error", "invalid_prompt"}
)
_CREDENTIAL_STATUSES: Final = frozenset({401, 403, 404, 408})
"""OpenAI says `invalid_request_error` for a wrong key and an unknown model too: the status knows better."""
MODEL_FAULT_CODES: Final = frozenset({"model_not_found", "model_not_supported"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The consequences of one failed attempt."""

    rotate: bool
    """Another credential may serve the request."""
    reason: str = ""
    cooldown_s: float = 0.0
    """How long the credential rests; 0: not at all."""
    backoff: bool = False
    """`cooldown_s` is not known: the exponential rule decides."""
    quota: bool = False
    """The block counts as cooling down (429), not as being out of order (503)."""
    whole_credential: bool = False
    whole_provider: bool = False
    """Nothing of this provider is worth another try in this request."""


STOP: Final = Verdict(rotate=False, reason="request")


def classify(error: ErrorBody, *, transient_s: float = TRANSIENT_COOLDOWN_S, counting: bool = False) -> Verdict:
    """The verdict on an error that an executor answered.

    `transient_s` is the configured rest after a temporary upstream failure (0: none). `counting`: a count endpoint
    that does not exist says nothing about the credential.
    """
    if error.code == "cancelled" or error.retryable is False:
        return STOP
    if error.http_status in REQUEST_FAULT_STATUSES and _is_model_fault(error):
        return Verdict(rotate=True, reason="model_not_supported", cooldown_s=_hint_s(error) or NOT_FOUND_COOLDOWN_S)
    if error.scope == "request" or (error.retryable is None and is_request_fault(error)):
        return STOP
    if error.scope == "connection":
        return Verdict(rotate=True, reason="connection")
    return _by_status(error, transient_s, counting)


def _by_status(error: ErrorBody, transient_s: float, counting: bool) -> Verdict:
    status, hint_s = error.http_status, _hint_s(error)
    reason, cooldown_s, backoff = "failed", 0.0, False
    if status == 401:
        reason, cooldown_s = "unauthorized", UNAUTHORIZED_COOLDOWN_S
    elif status in (402, 403):
        reason, cooldown_s = "payment_required", PAYMENT_COOLDOWN_S
    elif status == 404:
        reason, cooldown_s = "not_found", 0.0 if counting else NOT_FOUND_COOLDOWN_S
    elif status == 429:
        reason, cooldown_s, backoff = "quota", hint_s, not hint_s
    elif status == 408 or status >= 500:
        reason, cooldown_s = "transient", hint_s or transient_s
    elif error.scope == "model":
        reason, cooldown_s = "model_not_supported", hint_s or NOT_FOUND_COOLDOWN_S
    return Verdict(
        rotate=True,
        reason=reason,
        cooldown_s=cooldown_s,
        backoff=backoff,
        quota=status == 429,
        whole_credential=error.scope == "credential" and status != 404,
        whole_provider=error.scope == "provider",
    )


def is_request_fault(error: ErrorBody) -> bool:
    """Whether every credential would fail the same way (spec client-api 9.2)."""
    status = error.http_status
    if status in (402, 429) or error.scope in ("model", "credential", "provider", "connection"):
        return False
    code, kind = _code_and_type(error)
    if code in MODEL_FAULT_CODES:
        return False
    if status in REQUEST_FAULT_STATUSES or code in REQUEST_FAULT_CODES:
        return True
    return kind in REQUEST_FAULT_TYPES and status not in _CREDENTIAL_STATUSES


def _is_model_fault(error: ErrorBody) -> bool:
    return _code_and_type(error)[0] in MODEL_FAULT_CODES


def _hint_s(error: ErrorBody) -> float:
    """The upstream's own wish in seconds; 0 when there is none."""
    wanted = error.retry_after_ms
    return min(wanted / 1000.0, MAX_RETRY_AFTER_S) if wanted is not None and wanted > 0 else 0.0


class _Inner(Struct, kw_only=True):
    code: Any = None
    type: Any = None


class _Outer(Struct, kw_only=True):
    error: Any = None
    code: Any = None
    type: Any = None
    response: Any = None
    body: Any = None


_OUTER: Final = msgspec.json.Decoder(_Outer)


def _code_and_type(error: ErrorBody) -> tuple[str, str]:
    """The machine-readable code and type: of the upstream's body when it has them, else the error's own code."""
    if error.body is UNSET:
        return error.code, ""
    try:
        outer = _OUTER.decode(error.body.to_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return error.code, ""
    places = (outer.error, {"code": outer.code, "type": outer.type}, _member(outer.response), _member(outer.body))
    code = kind = ""
    for place in places:
        if isinstance(place, dict):
            code = code or _text(place.get("code"))
            kind = kind or _text(place.get("type"))
    return code or error.code, kind


def _member(value: Any) -> Any:
    return value.get("error") if isinstance(value, dict) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""

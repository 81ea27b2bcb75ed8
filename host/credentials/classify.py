"""What a failed attempt means: whose fault it was, may another credential be tried, how long does this one rest?

Decided by structure: status, `retryable`, `scope`, reset signals, and the machine-readable fields of an upstream's
error body; never by prose (spec credentials 5 and 12.2, design: Errors). The one exception is a rule that the operator
wrote.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct

from pluginabi.errors import ErrorBody
from pluginapi.upstream import retry_after_ms

UNAUTHORIZED_COOLDOWN_S: Final = 30 * 60.0
PAYMENT_COOLDOWN_S: Final = 30 * 60.0
NOT_FOUND_COOLDOWN_S: Final = 12 * 3600.0
TRANSIENT_COOLDOWN_S: Final = 60.0
CHALLENGE_MIN_S: Final = 10.0
BACKOFF_MAX_S: Final = 30 * 60.0
MAX_RETRY_AFTER_S: Final = 24 * 3600.0
"""An upstream's hint is believed up to a day: a wrong one must not disable a credential for weeks."""

Fault: TypeAlias = Literal["request", "model", "credential", "quota", "transient", "connection", "plugin"]
Action: TypeAlias = Literal["stop", "stop-and-cooldown", "continue", "continue-and-cooldown"]
ACTIONS: Final = ("stop", "stop-and-cooldown", "continue", "continue-and-cooldown")

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
MISSING_STATUSES: Final = frozenset({404, 405, 501})
"""How upstreams say that they have no such endpoint."""
_CREDENTIAL_STATUSES: Final = frozenset({401, 403, 404, 408})
"""OpenAI says `invalid_request_error` for a wrong key and an unknown model too: the status knows better."""
MODEL_FAULT_CODES: Final = frozenset(
    {"model_not_found", "model_not_supported", "unsupported_model", "model_not_available", "model_unavailable"}
)
_INVALID_GRANT: Final = "invalid_grant"
_REFUSED_CODES: Final = frozenset({_INVALID_GRANT, "API_KEY_INVALID"})
"""The credential is refused, whatever the status: Google says 400 to a key that it does not know, or not any more."""
PASSING: Final = frozenset({"quota", "credential_quota", "challenge", "transient", "unreachable", "failed"})
"""Reasons that pass by themselves, about which an upstream may know better than our guess."""
_CONNECTING: Final = frozenset({"connect", "tls", "proxy"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The consequences of one failed attempt."""

    rotate: bool
    """Another credential may serve the request."""
    fault: Fault = "transient"
    reason: str = ""
    status: int = 0
    cooldown_s: float = 0.0
    """How long the credential rests; 0: not at all."""
    exact: bool = False
    """`cooldown_s` is what the upstream said, not our guess."""
    backoff: bool = False
    """How long is not known: the exponential rule decides, with `cooldown_s` as the least."""
    at_most_s: float = BACKOFF_MAX_S
    """Of the exponential rule."""
    quota: bool = False
    """The block counts as cooling down (429), not as being out of order (503)."""
    forced: bool = False
    """Rests even where cooling is disabled."""
    whole_credential: bool = False
    whole_provider: bool = False
    """Nothing of this provider is worth another try in this request."""

    @property
    def rests(self) -> bool:
        """Whether the credential is blocked at all."""
        return self.backoff or self.cooldown_s > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRule:
    """An operator's rule for one status; with texts or patterns one of them must be found in message or body."""

    status: int
    action: Action
    texts: tuple[str, ...] = ()
    """Folded."""
    patterns: tuple[re.Pattern[str], ...] = ()

    def matches(self, error: ErrorBody) -> bool:
        """Whether the rule is about this error."""
        if error.http_status != self.status:
            return False
        if not self.texts and not self.patterns:
            return True
        shown = _shown_text(error)
        folded = shown.lower()
        return any(text in folded for text in self.texts) or any(it.search(shown) for it in self.patterns)


def classify(
    error: ErrorBody,
    *,
    transient_s: float = TRANSIENT_COOLDOWN_S,
    may_be_missing: bool = False,
    rules: Sequence[ErrorRule] = (),
) -> Verdict:
    """The verdict on an error that an executor answered.

    `transient_s` is the configured rest after a temporary upstream failure (0: none). `may_be_missing`: an
    upstream need not have this endpoint for a model that it serves; a 404 says nothing about the model unless it names
    it. The first of `rules` that matches decides what happens.
    """
    if error.code == "cancelled":
        return _stop(error)
    for rule in rules:
        if rule.matches(error):
            return _by_rule(rule, error, transient_s, may_be_missing)
    if error.retryable is False:
        return _stop(error)
    code, kind, param = _fields_of(error)
    if _is_model_fault(error, code):
        return _model_fault(error)
    if error.scope == "request" and error.retryable is None and code not in _REFUSED_CODES:
        return _stop(error)
    if error.retryable is None and _is_request_fault(error, code, kind, param):
        return _stop(error)
    if error.scope == "connection":
        return _connection_fault(error, transient_s)
    return _by_status(error, code, transient_s, may_be_missing)


def _stop(error: ErrorBody) -> Verdict:
    return Verdict(rotate=False, fault="request", reason="request", status=error.http_status)


def _is_model_fault(error: ErrorBody, code: str) -> bool:
    status = error.http_status
    if status == 403:
        return code in MODEL_FAULT_CODES  # a project that may not use one model: nothing is wrong with its others
    return status in REQUEST_FAULT_STATUSES and (code in MODEL_FAULT_CODES or error.scope == "model")


def _model_fault(error: ErrorBody) -> Verdict:
    hint_s = hint_of(error)
    return Verdict(
        rotate=True,
        fault="model",
        reason="model_not_supported",
        status=error.http_status,
        cooldown_s=hint_s or NOT_FOUND_COOLDOWN_S,
        exact=hint_s > 0,
        forced=True,
    )


def _connection_fault(error: ErrorBody, transient_s: float) -> Verdict:
    """A connection that was cut or refused says nothing about the credential, and to be told so takes no time. A host
    that does not answer at all is left alone for a while, a short one first: every further request would wait for it.
    """
    unreachable = error.code == "upstream_timeout" and error.details.get("phase") in _CONNECTING
    rests = unreachable and transient_s > 0
    return Verdict(
        rotate=True,
        fault="connection",
        reason="unreachable" if unreachable else "connection",
        status=error.http_status,
        backoff=rests,
        at_most_s=transient_s,
        whole_credential=rests,
    )


def _by_status(error: ErrorBody, code: str, transient_s: float, may_be_missing: bool) -> Verdict:
    status, hint_s = error.http_status, hint_of(error)
    whole = (error.scope == "credential" and status != 404) or code in _REFUSED_CODES
    fault: Fault = "credential"
    least_s, backoff = 0.0, False
    if _is_challenge(error):
        fault, reason, least_s, backoff = "quota", "challenge", CHALLENGE_MIN_S, True
    elif status == 401 or code in _REFUSED_CODES:
        # A key that is refused comes back when somebody mends it, not when a limit is reset.
        reason, hint_s = _INVALID_GRANT if code == _INVALID_GRANT else "unauthorized", 0.0
        least_s = UNAUTHORIZED_COOLDOWN_S
    elif status in (402, 403):
        reason, least_s = "payment_required", PAYMENT_COOLDOWN_S
    elif may_be_missing and status in MISSING_STATUSES and code not in MODEL_FAULT_CODES:
        # A count endpoint may be missing where the model is not, unless the upstream says that it is the model.
        fault, reason, hint_s = "model", "not_found", 0.0
    elif status == 404:
        fault, reason, hint_s = "model", "not_found", 0.0
        least_s = NOT_FOUND_COOLDOWN_S
    elif status == 429:
        fault, reason, backoff = "quota", "credential_quota" if whole else "quota", True
    elif error.retryable and status in REQUEST_FAULT_STATUSES:
        # Somebody who knows says that another credential may do better: nothing is wrong with this one.
        fault, reason = "request", "failed"
    else:
        # Whatever we do not know counts as a passing failure: a broken credential must leave the rotation.
        fault, reason, least_s = "transient", "transient" if status == 408 or status >= 500 else "failed", transient_s
    return Verdict(
        rotate=True,
        fault=fault,
        reason=reason,
        status=status,
        cooldown_s=hint_s or least_s,
        exact=hint_s > 0,
        backoff=backoff and not hint_s,
        quota=fault == "quota",
        whole_credential=whole,
        whole_provider=error.scope == "provider",
    )


def _by_rule(rule: ErrorRule, error: ErrorBody, transient_s: float, may_be_missing: bool) -> Verdict:
    """What the operator wants, with the rest that the error would have brought anyway, else that of a passing one."""
    rotate = rule.action.startswith("continue")
    if not rule.action.endswith("cooldown"):
        return Verdict(rotate=rotate, fault="request", reason="rule", status=error.http_status)
    known = classify(error, transient_s=transient_s, may_be_missing=may_be_missing)
    return Verdict(
        rotate=rotate,
        fault=known.fault,
        reason=known.reason if known.rests else "rule",
        status=error.http_status,
        cooldown_s=known.cooldown_s if known.rests else transient_s or TRANSIENT_COOLDOWN_S,
        exact=known.exact,
        backoff=known.backoff,
        quota=known.quota,
        forced=True,
        whole_credential=known.whole_credential,
    )


def _is_request_fault(error: ErrorBody, code: str, kind: str, param: str) -> bool:
    """Whether every credential would fail the same way (spec client-api 9.2)."""
    status = error.http_status
    if status in (402, 429) or error.scope in ("model", "credential", "provider", "connection"):
        # A 404 that complains about a part of the request: what it names is not stored anywhere.
        return status == 404 and kind in REQUEST_FAULT_TYPES and param not in ("", "model")
    if code in MODEL_FAULT_CODES or code in _REFUSED_CODES:
        return False
    if status in REQUEST_FAULT_STATUSES or code in REQUEST_FAULT_CODES:
        return status != 401 or kind != "authentication_error"
    if kind not in REQUEST_FAULT_TYPES:
        return False
    return status not in _CREDENTIAL_STATUSES or (status == 404 and param not in ("", "model"))


def _is_challenge(error: ErrorBody) -> bool:
    """A proxy in front of the upstream wants to see a browser; it says so in a header of its own."""
    values = error.headers.get("cf-mitigated", ())
    return any(value.strip().lower() == "challenge" for value in values)


def hint_of(error: ErrorBody) -> float:
    """When the upstream wants to be asked again, in seconds from now; 0 when it does not say."""
    wanted = error.retry_after_ms
    if wanted is None and (error.headers or error.body is not UNSET):
        wanted = retry_after_ms(error.headers, b"" if error.body is UNSET else error.body.to_bytes())
    return min(wanted / 1000.0, MAX_RETRY_AFTER_S) if wanted is not None and wanted > 0 else 0.0


class _Outer(Struct, kw_only=True):
    error: Any = None
    code: Any = None
    type: Any = None
    param: Any = None
    response: Any = None
    body: Any = None


_OUTER: Final = msgspec.json.Decoder(_Outer | list[_Outer])
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _fields_of(error: ErrorBody) -> tuple[str, str, str]:
    """Machine-readable code, type and parameter: of the upstream's body when it has them, else the error's own code."""
    if error.body is UNSET:
        return error.code, "", ""
    try:
        found = _OUTER.decode(error.body.to_bytes())
    except _UNDECODABLE:
        return error.code, "", ""
    if isinstance(found, list) and not found:
        return error.code, "", ""
    # Where Gemini answers an OpenAI request, the error stands in a list.
    outer = found[0] if isinstance(found, list) else found
    top = {"code": outer.code, "type": outer.type, "param": outer.param}
    # `invalid_grant` and its kind stand in `error` itself (RFC 6749 section 5.2).
    first = {"code": outer.error} if isinstance(outer.error, str) else outer.error
    code = kind = param = ""
    for place in (first, top, _member(outer.response), _member(outer.body)):
        if isinstance(place, dict):
            code = code or _text(place.get("code")) or _google_reason(place.get("details"))
            kind = kind or _text(place.get("type"))
            param = param or _text(place.get("param"))
    return code or error.code, kind, param


def _google_reason(details: Any) -> str:
    """The reason of Google's ErrorInfo, which says more than the status does."""
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and (reason := _text(detail.get("reason"))):
            return reason
    return ""


def _member(value: Any) -> Any:
    return value.get("error") if isinstance(value, dict) else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _shown_text(error: ErrorBody) -> str:
    if error.body is UNSET:
        return error.message
    return f"{error.message}\n{str(error.body.to_bytes(), 'utf-8', 'replace')}"

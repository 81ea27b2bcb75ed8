"""Whether two versions of a plugin answered the same, and an example of where not, without secrets."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct

from host.recording.compare import ABSENT, Difference, differences
from host.recording.format import Happened
from host.recording.redact import REDACTED, Redactor
from host.runtime.status import ShadowDifference
from pluginabi.errors import ErrorBody
from pluginabi.payloads.common import Payload
from pluginabi.payloads.translate import ResponseTranslateRequest

DECISIONS: Final = frozenset(
    {
        "model.route",
        "scheduler.pick",
        "request.intercept_before",
        "request.intercept_after",
        "request.normalize",
        "request.translate",
        "response.normalize_before",
        "response.translate",
        "response.normalize_after",
        "response.intercept_after",
        "thinking.apply",
    }
)
"""Hooks that answer at once and have no effect of their own; streams, executors and notifications have."""
NO_DECISION: Final = ("/answer/reason",)
"""Texts for people."""
LARGEST_BYTES: Final = 256 * 1024
"""Above this an answer is compared as a whole: taking it apart would hold up everybody else."""
MAX_DIFFERENCES: Final = 8
MAX_TEXT: Final = 160


class Answered(Struct, frozen=True, kw_only=True):
    """What a version came to: its answer, or its error."""

    result: Any = None
    error: ErrorBody | None = None


def is_whole(params: Payload) -> bool:
    """Whether a call is about something whole; one of many about the items of a stream makes sense only with them."""
    return not isinstance(params, ResponseTranslateRequest) or params.body is not UNSET


def differing(serving: Answered, shadow: Answered) -> Sequence[Difference]:
    """Where the two differ; nothing when they decided the same."""
    if serving == shadow:
        return ()
    one, other = _encoded(serving), _encoded(shadow)
    if one == other:
        return ()
    if max(len(one), len(other)) > LARGEST_BYTES:
        return (Difference(at="/answer", recorded=f"{len(one)} bytes", now=f"{len(other)} bytes"),)
    return differences(_happened(one, serving), _happened(other, shadow), ignore=NO_DECISION)


def shown(
    found: Sequence[Difference], serving: Answered, shadow: Answered, redactor: Redactor
) -> list[ShadowDifference]:
    """The differences as an example shows them: texts of bodies only by their length, and nothing that is secret."""
    if len(found) == 1 and found[0].at == "/answer" and isinstance(found[0].recorded, str):
        return [ShadowDifference(at=found[0].at, serving=str(found[0].recorded), shadow=str(found[0].now))]
    one, other = (_redacted(_encoded(it), it, redactor) for it in (serving, shadow))
    without_secrets = {difference.at: difference for difference in differences(one, other, ignore=NO_DECISION)}
    examples = []
    for difference in found[:MAX_DIFFERENCES]:
        safe = without_secrets.get(difference.at)
        texts = (
            (_text(safe.recorded, redactor), _text(safe.now, redactor)) if safe is not None else (REDACTED, REDACTED)
        )
        examples.append(ShadowDifference(at=difference.at, serving=texts[0], shadow=texts[1]))
    return examples


def _encoded(answered: Answered) -> bytes:
    return msgspec.json.encode(answered.result if answered.error is None else answered.error)


def _happened(encoded: bytes, answered: Answered) -> Happened:
    plain = msgspec.json.decode(encoded)
    return Happened(answer=plain) if answered.error is None else Happened(error=plain)


def _redacted(encoded: bytes, answered: Answered, redactor: Redactor) -> Happened:
    plain = msgspec.json.decode(encoded)
    if isinstance(plain, dict) and "patch" in plain:
        # A patch holds what a body holds.
        plain["patch"] = {"body": {"json": plain["patch"]}}
    plain = redactor.plain(msgspec.json.encode(plain))
    if isinstance(plain, dict) and isinstance(plain.get("patch"), Mapping):
        plain["patch"] = plain["patch"]["body"]["json"]
    return Happened(answer=plain) if answered.error is None else Happened(error=plain)


def _text(value: Any, redactor: Redactor) -> str:
    text = ABSENT if value == ABSENT else redactor.line(value).decode()
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"

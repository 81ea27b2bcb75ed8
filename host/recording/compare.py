"""Where two answers to the same call differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from host.recording.format import Happened

ABSENT: Final = "(nothing)"
MAX_SHOWN: Final = 160
"""Characters of a value in the readable report."""
_ERROR_FIELDS: Final = ("code", "http_status", "message", "retryable", "retry_after_ms")


class Difference(Struct, frozen=True, kw_only=True):
    """One place, as a JSON pointer into what the call came to."""

    at: str
    recorded: Any
    now: Any

    def text(self) -> str:
        """For people."""
        return f"{self.at}: {_shown(self.recorded)} -> {_shown(self.now)}"


def differences(recorded: Happened, now: Happened, *, ignore: Sequence[str] = ()) -> list[Difference]:
    """What changed, in the order of the recorded answer; places at or below a pointer in `ignore` are left out."""
    found = _differences(
        "", _decision(recorded), _decision(now, items=len(recorded.items or ()), cut=recorded.items_cut)
    )
    return [it for it in found if not any(it.at == pointer or it.at.startswith(f"{pointer}/") for pointer in ignore)]


def _decision(happened: Happened, *, items: int = 0, cut: bool = False) -> dict[str, Any]:
    """What counts: times and usage do not."""
    decision: dict[str, Any] = {}
    if happened.error is not None:
        decision["error"] = {name: happened.error[name] for name in _ERROR_FIELDS if name in happened.error}
    elif happened.answer not in (None, {}):
        decision["answer"] = _plain(happened.answer)
    if happened.items is not None:
        kept = happened.items[:items] if cut else happened.items
        decision["items"] = _joined([_plain(item) for item in kept])
    return decision


def _plain(value: Any) -> Any:
    """Bodies in one form: a text that is JSON as JSON."""
    if isinstance(value, Mapping):
        if value.keys() == {"text"} and isinstance(value["text"], str) and value["text"][:1] in ("{", "["):
            try:
                return {"json": msgspec.json.decode(value["text"])}
            except msgspec.DecodeError:
                return dict(value)
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _joined(items: list[Any]) -> list[Any]:
    """Raw data may be cut anywhere, so pieces that follow each other are one."""
    joined: list[Any] = []
    for item in items:
        text = _raw_text(item)
        before = _raw_text(joined[-1]) if joined else None
        if text is not None and before is not None:
            joined[-1] = {"raw": {"text": before + text}}
        else:
            joined.append(item)
    return joined


def _raw_text(item: Any) -> str | None:
    raw = item.get("raw") if isinstance(item, Mapping) else None
    text = raw.get("text") if isinstance(raw, Mapping) else None
    return text if isinstance(text, str) else None


def _differences(at: str, recorded: Any, now: Any) -> Iterator[Difference]:
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in [*recorded, *(key for key in now if key not in recorded)]:
            pointer = f"{at}/{str(key).replace('~', '~0').replace('/', '~1')}"
            if key not in recorded or key not in now:
                yield Difference(at=pointer, recorded=recorded.get(key, ABSENT), now=now.get(key, ABSENT))
            else:
                yield from _differences(pointer, recorded[key], now[key])
    elif isinstance(recorded, list) and isinstance(now, list):
        for index in range(max(len(recorded), len(now))):
            one = recorded[index] if index < len(recorded) else ABSENT
            other = now[index] if index < len(now) else ABSENT
            yield from _differences(f"{at}/{index}", one, other)
    elif recorded != now:
        yield Difference(at=at or "/", recorded=recorded, now=now)


def _shown(value: Any) -> str:
    text = value if value == ABSENT else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"

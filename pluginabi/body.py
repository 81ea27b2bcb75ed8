"""Bodies and stream items: the only places of a frame where foreign bytes travel.

On the JSON wire a body is an object with exactly one key: `{"json": …}`, `{"text": "…"}` or `{"base64": "…"}`.
In memory `json` holds the undecoded bytes (`msgspec.Raw`) and `base64` the plain bytes, so an in-process plugin gets
a body without a copy.
"""

from typing import Any, Final, Self

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

__all__ = ["EMPTY_BODY", "Body", "StreamItem", "is_json"]


def is_json(data: bytes) -> bool:
    """Whether `data` is one JSON text in valid UTF-8, so that it may be embedded in a frame as it is."""
    try:
        msgspec.json.decode(data, type=Raw)
        # msgspec checks the grammar of what it skips, not the encoding inside strings.
        if not data.isascii():
            str(data, "utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


class Body(Struct, frozen=True, omit_defaults=True):
    """A body in exactly one of three forms. Raises ValueError when none or several are set."""

    json: Raw | UnsetType = UNSET
    text: str | UnsetType = UNSET
    base64: bytes | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.json is not UNSET) + (self.text is not UNSET) + (self.base64 is not UNSET) != 1:
            raise ValueError("a body has exactly one of the keys json, text, base64")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The form the wire prefers: JSON when `data` is JSON, other UTF-8 as text, the rest as base64."""
        if is_json(data):
            return cls(json=Raw(data))
        try:
            return cls(text=str(data, "utf-8"))
        except UnicodeDecodeError:
            return cls(base64=data)

    @classmethod
    def exact(cls, data: bytes) -> Self:
        """Exact bytes, never re-spelled by a carrier."""
        return cls(base64=data)

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """Encode a JSON-like value (or msgspec struct)."""
        return cls(json=Raw(msgspec.json.encode(value)))

    def to_bytes(self) -> bytes:
        """The body's bytes."""
        if self.json is not UNSET:
            return bytes(self.json)
        if self.text is not UNSET:
            return self.text.encode()
        assert self.base64 is not UNSET
        return self.base64

    def value(self) -> Any:
        """The body decoded as JSON, whatever its form. Raises `msgspec.DecodeError` when it is not JSON."""
        return msgspec.json.decode(self.to_bytes())


EMPTY_BODY: Final = Body(text="")


class StreamItem(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One element of a stream: a complete event (`event`, `body`) or any split of the wire bytes (`raw`).

    A stream is all events or all raw. An item with neither `body` nor `raw` is progress and is never forwarded.
    """

    event: str | None = None
    body: Body | UnsetType = UNSET
    raw: Body | UnsetType = UNSET

    @property
    def is_progress(self) -> bool:
        return self.body is UNSET and self.raw is UNSET

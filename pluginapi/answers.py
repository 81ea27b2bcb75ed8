"""What a hook may answer beside its response struct: usage, streams, and the short spellings of stream items."""

from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from msgspec import UNSET, Raw

from pluginabi.body import Body, StreamItem
from pluginabi.frames import Usage
from pluginabi.immutable import FrozenDict, Headers
from pluginabi.payloads.common import Payload

BodyLike: TypeAlias = Body | Raw | bytes | str | Mapping[str, Any] | Sequence[Any] | msgspec.Struct | None
"""A body, its bytes or text, or a JSON-like value (mapping, list, struct); None: no body."""
HeadersLike: TypeAlias = Mapping[str, str | Sequence[str]]
"""Names in any case; a string counts as a list of one."""
ItemLike: TypeAlias = (
    StreamItem
    | Body
    | Usage
    | bytes
    | str
    | Mapping[str, Any]
    | Sequence[Any]
    | msgspec.Struct
    | tuple[str, Any]
    | None
)
"""What a stream may yield; `to_item` says what each means."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer together with the usage of its closing frame."""

    result: Payload | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Stream:
    """An opened stream: `executor_execute_stream` returns it, or is an async generator (status 200, no headers).

    `items` is consumed under credit and closed (`aclose`) on the last item, on an error and on cancellation; raising
    in it ends the stream with an error that keeps its status. `status` is 200 to 299: raise `PluginError` for others.
    """

    items: AsyncIterable[Any]
    """Yields `ItemLike`; a `Usage` sets the usage of the closing frame instead of being sent. What `ctx.http.stream`
    opened may be given as it is: nothing of it then passes through the plugin's code."""
    status: int = 200
    headers: HeadersLike = field(default_factory=dict)
    usage: Usage | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def to_body(value: BodyLike) -> Body | msgspec.UnsetType:
    """The body of an answer: bytes and text are taken as they are, JSON-like values are encoded."""
    if value is None:
        return UNSET
    if isinstance(value, Body):
        return value
    if isinstance(value, bytes):
        return Body.from_bytes(value)
    if isinstance(value, str):
        return Body(text=value)
    return Body.from_value(value)


def to_headers(headers: HeadersLike) -> Headers:
    """Lower-cased names to lists."""
    if not headers:
        return FrozenDict()
    return FrozenDict(
        {name.lower(): (value,) if isinstance(value, str) else tuple(value) for name, value in headers.items()}
    )


def to_item(value: Any) -> StreamItem:
    """One yielded value as a stream item. Raises TypeError for what cannot be one.

    | yielded | sent |
    |---|---|
    | `StreamItem` | as it is |
    | `bytes`, `str` | raw wire data, any split |
    | mapping, list, struct | an event whose body is that JSON |
    | `("name", value)` | the same with an event name |
    | `Body` | an event with that body |
    | None | progress: resets the idle timeout, is never forwarded |
    """
    if isinstance(value, StreamItem):
        return value
    if isinstance(value, bytes):
        return StreamItem(raw=Body.exact(value))
    if isinstance(value, str):
        return StreamItem(raw=Body(text=value))
    if value is None:
        return StreamItem()
    if isinstance(value, tuple):
        if len(value) != 2 or not isinstance(value[0], str):
            raise TypeError("a yielded tuple is (event name, value)")
        return StreamItem(event=value[0], body=_event_body(value[1]))
    return StreamItem(body=_event_body(value))


def _event_body(value: Any) -> Body:
    body = to_body(value)
    return Body(text="") if body is UNSET else body

"""What one plugin gets to see of a request: the `inputs` language, bodies by pointer, and headers without secrets."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from host.runtime.handle import Inputs
from pluginabi.body import Body
from pluginabi.immutable import FrozenDict, Headers, freeze

SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "x-api-key", "x-goog-api-key"})
SECRET_QUERY: Final = frozenset({"key", "auth_token"})
FRONTEND_AUTH_BODY_BYTES: Final = 1024 * 1024
"""A frontend-auth plugin that asks for the body gets none above this size."""

_POINTER_PREFIX: Final = "body:/"
_FLAGS: Final[Mapping[str, str]] = {
    "body": "body",
    "client_body": "client_body",
    "request_body": "request_body",
    "history": "history",
    "candidates:all": "all_candidates",
}
_NOTHING: Final = object()
EMPTY_PARTS: Final[Mapping[str, Any]] = FrozenDict()


def parse_inputs(words: Sequence[str]) -> Inputs:
    """What a list of words asks for; an empty list is nothing. Raises ValueError for an unknown word."""
    flags: dict[str, bool] = {}
    pointers: list[str] = []
    for word in words:
        if word in _FLAGS:
            flags[_FLAGS[word]] = True
        elif word == "body:exact":
            flags["body"] = flags["body_exact"] = True
        elif word.startswith(_POINTER_PREFIX):
            pointer = word.removeprefix("body:")
            _pointer_tokens(pointer)
            if pointer not in pointers:
                pointers.append(pointer)
        else:
            raise ValueError(
                f"{word!r} is no input; write body, body:exact, body:/json/pointer, client_body, request_body,"
                " history or candidates:all"
            )
    return Inputs(body_pointers=tuple(pointers), **flags)


def visible_headers(headers: Headers, may_see_secrets: bool) -> Headers:
    """`headers` without the client's secrets, unless they may be seen. The same object when nothing is hidden."""
    if may_see_secrets or SECRET_HEADERS.isdisjoint(headers):
        return headers
    return FrozenDict({name: values for name, values in headers.items() if name not in SECRET_HEADERS})


def visible_query(query: Headers, may_see_secrets: bool) -> Headers:
    """`query` without the client's secrets, unless they may be seen. The same object when nothing is hidden."""
    if may_see_secrets or SECRET_QUERY.isdisjoint(query):
        return query
    return FrozenDict({name: values for name, values in query.items() if name not in SECRET_QUERY})


def select_body(inputs: Inputs, body: Body) -> Body | UnsetType:
    """The body field for a plugin: `body` when it asked for it, in exact form when it asked for that."""
    if inputs.body_exact:
        return body if body.base64 is not UNSET else Body.exact(body.to_bytes())
    return body if inputs.body else UNSET


def body_parts(pointers: Sequence[str], body: bytes | Body) -> Mapping[str, Any]:
    """Pointer -> the plain JSON value there, deeply immutable; no key when nothing is there or the body is no JSON.

    Only the objects and arrays on the way to a pointer are taken apart; a large body costs its top level once.
    """
    if not pointers:
        return EMPTY_PARTS
    data = body.to_bytes() if isinstance(body, Body) else body
    found: dict[str, Any] = {}
    tops: dict[type, Any] = {}
    for pointer in pointers:
        value = _at(data, _pointer_tokens(pointer), tops)
        if value is not _NOTHING:
            found[pointer] = freeze(value)
    return FrozenDict(found)


def _at(data: bytes, tokens: Sequence[str], tops: dict[type, Any]) -> Any:
    raw: Any = Raw(data)
    for depth, token in enumerate(tokens):
        raw = _child(raw, token, tops if depth == 0 else None)
        if raw is _NOTHING:
            return _NOTHING
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _NOTHING


def _child(raw: Any, token: str, tops: dict[type, Any] | None) -> Any:
    members = _take_apart(raw, dict, tops)
    if members is not None:
        return members.get(token, _NOTHING)
    items = _take_apart(raw, list, tops)
    if items is None:
        return _NOTHING
    index = _index(token)
    if index is None or not -len(items) <= index < len(items):
        return _NOTHING
    return items[index]


def _take_apart(raw: Any, kind: type, tops: dict[type, Any] | None) -> Any:
    """`raw` as a dict or list of undecoded members; None when it is not of that kind."""
    if tops is not None and kind in tops:
        return tops[kind]
    try:
        parts = (_OBJECT if kind is dict else _ARRAY).decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        parts = None
    if tops is not None:
        tops[kind] = parts
    return parts


_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_ARRAY: Final = msgspec.json.Decoder(list[Raw])


def _pointer_tokens(pointer: str) -> tuple[str, ...]:
    tokens = pointer.split("/")[1:]
    for token in tokens:
        bare = token.replace("~0", "").replace("~1", "")
        if "~" in bare:
            raise ValueError(f"{pointer!r} is no JSON pointer: '~' is written ~0 and '/' is written ~1")
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)


def _index(token: str) -> int | None:
    """An array index: decimal without leading zeros, or negative, counted from the end."""
    digits = token.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or (len(digits) > 1 and digits[0] == "0") or token == "-0":
        return None
    return int(token)

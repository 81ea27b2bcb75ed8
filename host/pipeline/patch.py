"""Changing JSON bodies without touching what nobody asked to change: RFC 7396 patches and single members.

Members that a patch does not name keep their bytes: number spelling, escapes, key order, white space.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from host.pipeline.decode import UNDECODABLE
from pluginabi.errors import PluginError, host_error

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_SPACE: Final = re.compile(rb"[ \t\n\r]*")
_KEY: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_COLON: Final = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")
_AFTER: Final = re.compile(rb"[ \t\n\r]*[,}]")


class _ModelMember(Struct):
    model: Any = None


_MODEL: Final = msgspec.json.Decoder(_ModelMember)


def apply_patch(body: bytes, patch: bytes) -> bytes:
    """`body` with the RFC 7396 `patch` applied; the same object when the patch changes nothing.

    Raises PluginError `patch_not_applicable` when either is not a JSON object.
    """
    changes = _members(patch, "the patch")
    target = _members(body, "the body")
    try:
        return _merge(body, target, changes)
    except RecursionError:
        raise _not_applicable("the patch is nested too deeply") from None


def set_member(body: bytes, name: str, value: bytes) -> bytes:
    """`body`, a JSON object, with its top-level member `name` set to the JSON text `value`. Raises as `apply_patch`."""
    return _merge(body, _members(body, "the body"), {name: value})


def merge_members(body: bytes, members: Mapping[str, bytes]) -> bytes:
    """`body`, a JSON object, with top-level members set to JSON texts; objects are merged. Raises as `apply_patch`."""
    return _merge(body, _members(body, "the body"), dict(members))


def model_of(body: bytes) -> str | None:
    """The top-level `model` of a body; None when it has none or it is no text."""
    try:
        model = _MODEL.decode(body).model
    except UNDECODABLE:
        return None
    return model if isinstance(model, str) else None


def is_object(body: bytes) -> bool:
    """Whether a body that is JSON is an object."""
    return body.lstrip(b" \t\r\n").startswith(b"{")


def _members(data: bytes, what: str) -> dict[str, Any]:
    try:
        return _OBJECT.decode(data)
    except UNDECODABLE:
        raise _not_applicable(f"{what} is no JSON object") from None


def _not_applicable(why: str) -> PluginError:
    return host_error("patch_not_applicable", why)


def _merge(body: bytes, target: dict[str, Any], changes: dict[str, Any]) -> bytes:
    replaced: dict[str, bytes | None] = {}
    for name, raw in changes.items():
        value = bytes(raw)
        if value == b"null":
            if name in target:
                replaced[name] = None
        elif value.startswith(b"{"):
            before = bytes(target[name]) if name in target else b""
            if before.startswith(b"{"):
                after = _merge(before, _OBJECT.decode(before), _OBJECT.decode(value))
            else:
                after = _without_nulls(value)
            if after != before:
                replaced[name] = after
        elif name not in target or bytes(target[name]) != value:
            replaced[name] = value
    return _rewrite(body, target, replaced) if replaced else body


def _without_nulls(value: bytes) -> bytes:
    """What a new object becomes: RFC 7396 merges it into an empty one, so its nulls vanish."""
    return value if b"null" not in value else _merge(b"{}", {}, _OBJECT.decode(value))


def _rewrite(body: bytes, target: dict[str, Any], replaced: dict[str, bytes | None]) -> bytes:
    spans = _spans(body, target)
    if spans is None:
        # A name occurs twice: the decoder's view (the last one counts) is written out member by member.
        members = {name: bytes(raw) for name, raw in target.items()} | replaced
        parts = [_encoded(name) + b":" + value for name, value in members.items() if value is not None]
        return b"{" + b",".join(parts) + b"}"
    if all(value is not None and name in target for name, value in replaced.items()):
        return _with_values(body, spans, replaced)
    parts = []
    for name, key_start, value_start, end in spans:
        if name not in replaced:
            parts.append(body[key_start:end])
        elif (value := replaced[name]) is not None:
            parts.append(body[key_start:value_start] + value)
    parts.extend(
        _encoded(name) + b":" + value for name, value in replaced.items() if value is not None and name not in target
    )
    return b"{" + b",".join(parts) + b"}"


def _with_values(body: bytes, spans: list[tuple[str, int, int, int]], replaced: dict[str, bytes | None]) -> bytes:
    """`body` with other values for some members, the white space around them included."""
    parts: list[bytes] = []
    at = 0
    for name, _, value_start, end in spans:
        if value := replaced.get(name):
            parts += (body[at:value_start], value)
            at = end
    return b"".join(parts) + body[at:]


def _encoded(name: str) -> bytes:
    return msgspec.json.encode(name)


def _spans(body: bytes, target: dict[str, Any]) -> list[tuple[str, int, int, int]] | None:
    """Name, start of key, start of value and end of each top-level member; None when a name occurs twice."""
    spans: list[tuple[str, int, int, int]] = []
    position = _end(_SPACE, body, 0) + 1
    for _ in range(len(target)):
        position = _end(_SPACE, body, position)
        key = _KEY.match(body, position)
        if key is None:
            return None
        name = msgspec.json.decode(key.group())
        value_start = _end(_COLON, body, key.end())
        value = bytes(target[name])
        end = value_start + len(value)
        if not body.startswith(value, value_start) or _AFTER.match(body, end) is None:
            return None
        spans.append((name, position, value_start, end))
        position = _end(_SPACE, body, end) + 1
    if body[position - 1 : position] != b"}" or len({name for name, *_ in spans}) != len(target):
        return None
    return spans


def _end(pattern: re.Pattern[bytes], body: bytes, position: int) -> int:
    found = pattern.match(body, position)
    return found.end() if found is not None else position

"""What the generated pages are made of: fields, notes, types and tables of the contract's structs."""

import ast
import inspect
import itertools
import json
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from pluginabi.errors import HOST_CODES

PROTO: Final = Path(__file__).resolve().parent
NOTES: Final = tomllib.loads((PROTO / "notes.toml").read_text(encoding="utf-8"))


def collect(struct: type[Struct], found: dict[str, type[Struct]]) -> None:
    """`struct` and every struct its fields mention."""
    if struct.__name__ in found or struct.__name__ in ("Body", "StreamItem", "ErrorBody", "Usage"):
        return
    found[struct.__name__] = struct
    for field in fields_of(struct):
        for inner in structs_in(field.type):
            collect(inner, found)


def fields_of(struct: type[Struct]) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def structs_in(node: Any) -> Iterator[type[Struct]]:
    if isinstance(node, msgspec.inspect.StructType):
        yield node.cls
    for name in ("types", "item_type", "item_types", "value_type"):
        inner = getattr(node, name, ())
        for child in inner if isinstance(inner, tuple) else (inner,):
            yield from structs_in(child)


def summary(struct: type[Struct]) -> str:
    paragraphs = (inspect.getdoc(struct) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def fields_table(struct: type[Struct]) -> str:
    fields = fields_of(struct)
    if not fields:
        return "No fields.\n"
    notes = field_notes(struct)
    rows = [(f"`{f.encode_name}`", type_name(f.type), default_of(f), notes.get(f.name, "")) for f in fields]
    if not any(note for *_, note in rows):
        return table(("Field", "Type", "Default"), (row[:3] for row in rows))
    return table(("Field", "Type", "Default", "Notes"), rows)


def field_notes(struct: type[Struct]) -> dict[str, str]:
    """What is known of each field: the string literal below it (inherited ones included), else `notes.toml`."""
    specific = NOTES["structs"].get(struct.__name__, {})
    return {**NOTES["fields"], **specific, **written_notes(struct)}


def written_notes(struct: type[Struct]) -> dict[str, str]:
    """The string literals below the fields."""
    notes: dict[str, str] = {}
    for owner in reversed(struct.__mro__):
        if not issubclass(owner, Struct) or owner is Struct:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
        body = tree.body[0].body  # type: ignore[attr-defined]
        for statement, following in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name, value = ast.unparse(statement.target), following.value
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    notes[name] = " ".join(value.value.split())
    return notes


def default_of(field: Any) -> str:
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT:
        made = field.default_factory()
        if isinstance(made, Struct):
            return "its defaults"
        return f"`{msgspec.json.encode(made).decode()}`"
    if field.default in (None, msgspec.NODEFAULT):
        return "absent"
    if field.default == ():
        return "`[]`"
    return f"`{json.dumps(field.default)}`"


def type_name(node: Any) -> str:
    """A type as an author of any language would say it."""
    kinds = msgspec.inspect
    match node:
        case kinds.UnionType():
            names = [type_name(inner) for inner in node.types if not isinstance(inner, kinds.NoneType)]
            return " or ".join(names)
        case kinds.StructType():
            return "body" if node.cls.__name__ == "Body" else link(node.cls)
        case kinds.DictType():
            return f"object of {type_name(node.value_type)}"
        case kinds.ListType() | kinds.VarTupleType() | kinds.CollectionType():
            return f"list of {type_name(node.item_type)}"
        case kinds.LiteralType():
            return " \\| ".join(f"`{value}`" for value in node.values)
        case kinds.StrType():
            return "string"
        case kinds.BoolType():
            return "boolean"
        case kinds.IntType():
            return "integer"
        case kinds.FloatType():
            return "number"
        case kinds.RawType() | kinds.AnyType():
            return "any JSON"
    raise TypeError(f"no name for {node}")


def codes_table() -> str:
    return table(("Code", "Status", "Meaning"), ((f"`{c}`", s, CODE_MEANINGS[c]) for c, s in HOST_CODES.items()))


CODE_MEANINGS = {
    "plugin_unavailable": "the plugin is not ready; nothing was sent",
    "plugin_crashed": "the plugin ended, or closed the connection, before it answered",
    "plugin_protocol_error": "what the plugin sent cannot be used",
    "plugin_timeout": "no `result` before the deadline",
    "plugin_overloaded": "the plugin is full and its queue too, or it does not read; with `retry_after_ms`",
    "stream_overflow": "the producer of a stream sent more than it was allowed to",
    "plugin_body_too_large": "a body or frame above what the receiver accepts",
    "cancelled": "the caller gave up",
    "method_not_found": "a method that the callee does not have",
    "permission_denied": "a callback, host or credential the plugin has no right to",
    "parent_closed": "a callback on behalf of a call that has finished",
    "depth_exceeded": "model calls nested too deeply, or too many of them",
    "patch_not_applicable": "a `patch` for a body that is no JSON object",
}


def link(struct: type[Struct]) -> str:
    known = {"StreamItem": "#stream-items", "ErrorBody": "#the-error-object", "Usage": "#usage"}
    name = struct.__name__
    return f"[{name}]({known.get(name, '#' + name.lower())})"


def ticks(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"

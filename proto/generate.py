"""Regenerates what is derived from the contract: `python proto/generate.py [--check]`, or `make proto`.

- `pluginabi/_pb/` from the .proto file (needs grpcio-tools, everything else only the project)
- `proto/json/v1/*.schema.json` from the structs
- what stands between the markers of `proto/README.md` from the method table, the structs and the error codes

With `--check` nothing is written; the exit code is 1 and the stale files are named when something is not current.
`--no-code` leaves out what needs grpcio-tools.
"""

import argparse
import ast
import inspect
import itertools
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402
from msgspec import Struct  # noqa: E402

from pluginabi.errors import HOST_CODES, PHASE_CODES, ErrorBody  # noqa: E402
from pluginabi.frames import Frame, Usage  # noqa: E402
from pluginabi.grpc_frames import BODY_PATHS  # noqa: E402
from pluginabi.methods import HOST_METHODS, METHODS, PERMISSION_OF_CALLBACK, PLUGIN_METHODS, MethodSpec  # noqa: E402

PROTO = ROOT / "proto"
README = PROTO / "README.md"
SCHEMAS = PROTO / "json" / "v1"
GENERATED_CODE = ROOT / "pluginabi" / "_pb"
PROTO_FILE = "jackfield/plugin/v1/plugin.proto"


# -- code


def generated_code() -> Iterator[tuple[Path, str]]:
    """The message classes and their stubs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={folder}"]
        subprocess.run([*command, f"--pyi_out={folder}", PROTO_FILE], check=True, cwd=ROOT)
        made = Path(folder) / Path(PROTO_FILE).with_name("plugin_pb2.py")
        yield GENERATED_CODE / "plugin_pb2.py", without_runtime_pin(made.read_text(encoding="utf-8"))
        yield GENERATED_CODE / "plugin_pb2.pyi", made.with_suffix(".pyi").read_text(encoding="utf-8")


def without_runtime_pin(code: str) -> str:
    """protoc demands a protobuf at least as new as itself. Messages as plain as ours work with any, and users have
    other packages that hold protobuf back."""
    code = re.sub(r"^from google\.protobuf import runtime_version.*\n", "", code, flags=re.MULTILINE)
    call = r"^_runtime_version\.ValidateProtobufRuntimeVersion\(.*?^\)\n"
    code = re.sub(call, "", code, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^# Protobuf Python Version: .*\n", "", code, flags=re.MULTILINE)


# -- schemas


def schema_files() -> Iterator[tuple[Path, str]]:
    """One schema per frame kind, and two per method."""
    for frame_type in get_args(Frame):
        kind = frame_type.__struct_config__.tag
        yield SCHEMAS / f"frame.{kind}.schema.json", schema_of(frame_type, f"frame.{kind}")
    for method in METHODS.values():
        yield SCHEMAS / f"{method.name}.params.schema.json", schema_of(method.request, f"{method.name}.params")
        yield SCHEMAS / f"{method.name}.result.schema.json", schema_of(method.response, f"{method.name}.result")


def schema_of(struct: type[Struct], name: str) -> str:
    """JSON Schema (2020-12) of one struct."""
    schema = msgspec.json.schema(struct)
    body = schema.get("$defs", {}).get("Body")
    if body is not None:
        # The rule that a struct cannot express: exactly one of the three forms.
        body["minProperties"] = body["maxProperties"] = 1
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:jackfield:plugin:v1:{name}",
    }
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


# -- tables


def readme() -> str:
    """The README with fresh text between its markers. Raises KeyError for a marker without a table."""
    tables = {
        "methods": methods_table(PLUGIN_METHODS),
        "callbacks": callbacks_table(),
        "payloads": payload_sections(),
        "codes": codes_table(),
        "phases": table(("Phase", "Code", "Status"), ((p, c, HOST_CODES[c]) for p, c in PHASE_CODES.items())),
        "body-paths": table(("Part", "Paths"), ((part, ticks(paths)) for part, paths in BODY_PATHS.items())),
        "usage": ticks(Usage.__struct_fields__) + "\n",
        "error": fields_table(ErrorBody),
    }
    marker = re.compile(r"(<!-- begin generated: (?P<name>[\w-]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)
    text = README.read_text(encoding="utf-8")
    return marker.sub(lambda found: f"{found[1]}{tables[found['name']]}{found[3]}", text)


def methods_table(methods: Mapping[str, MethodSpec]) -> str:
    columns = ("Method", "Params", "Answer", "Stream", "Deadline", "On error", "Default inputs")
    return table(columns, (method_row(method) for method in methods.values()))


def method_row(method: MethodSpec) -> tuple[object, ...]:
    deadline = "first byte" if method.timeout_ms is None else f"{method.timeout_ms / 1000:g} s"
    if method.reserved:
        deadline = "reserved"
    inputs = ticks(method.inputs)
    stream = "yes" if method.stream else ""
    return (
        f"`{method.name}`",
        link(method.request),
        link(method.response),
        stream,
        deadline,
        method.on_error,
        inputs,
    )


def callbacks_table() -> str:
    rows = (
        (
            f"`{method.name}`",
            link(method.request),
            link(method.response),
            "yes" if method.stream else "",
            f"`{PERMISSION_OF_CALLBACK[method.name]}`",
        )
        for method in HOST_METHODS.values()
    )
    return table(("Method", "Params", "Answer", "Stream", "Permission"), rows)


def payload_sections() -> str:
    """A heading and a table of fields for every struct of a method, and for what they contain."""
    structs: dict[str, type[Struct]] = {}
    for method in METHODS.values():
        for struct in (method.request, method.response):
            collect(struct, structs)
    sections = []
    for name in sorted(structs):
        sections.append(f"#### {name}\n\n{summary(structs[name])}\n\n{fields_table(structs[name])}")
    return "\n".join(sections)


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
    """The string literals below the fields, inherited ones included."""
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


# -- all of it


def everything(*, with_code: bool) -> Iterator[tuple[Path, str]]:
    """Every derived file with its text."""
    if with_code:
        yield from generated_code()
    yield from schema_files()
    yield README, readme()


def stale(made: dict[Path, str]) -> list[Path]:
    """The files that are not current, schemas of something that is gone included."""
    old = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return old + [path for path in SCHEMAS.glob("*.json") if path not in made]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is not current")
    parser.add_argument("--no-code", action="store_true", help="leave out what needs grpcio-tools")
    arguments = parser.parse_args()
    made = dict(everything(with_code=not arguments.no_code))
    old = stale(made)
    for path in old:
        if arguments.check:
            sys.stderr.write(f"not current: {path.relative_to(ROOT)} (run `make proto`)\n")
        elif path in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], encoding="utf-8")
        else:
            path.unlink()
    return 1 if arguments.check and old else 0


if __name__ == "__main__":
    raise SystemExit(main())

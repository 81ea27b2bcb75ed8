"""Regenerates what is derived from the contract: `python proto/generate.py [--check]`, or `make proto`.

- `pluginabi/_pb/` from the .proto file (needs grpcio-tools, everything else only the project)
- `proto/json/v1/*.schema.json` from the structs
- what stands between the markers of `proto/README.md` from the method table, the structs and the error codes
- `docs/reference/` from the same, `plugin.toml`'s keys, the gateway's refusals and the command line

With `--check` nothing is written; the exit code is 1 and the stale files are named when something is not current.
`--no-code` leaves out what needs grpcio-tools.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "proto"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import msgspec  # noqa: E402
from msgspec import Struct  # noqa: E402
from reference import pages  # noqa: E402
from tables import codes_table, collect, field_notes, fields_table, link, summary, table, ticks  # noqa: E402

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
    describe(schema, struct)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:jackfield:plugin:v1:{name}",
    }
    return json.dumps({**head, **schema}, indent=2, ensure_ascii=False) + "\n"


def describe(schema: dict[str, Any], struct: type[Struct]) -> None:
    """Put the notes of the fields into the schema, for editors."""
    structs: dict[str, type[Struct]] = {}
    collect(struct, structs)
    for name, definition in schema.get("$defs", {}).items():
        notes = field_notes(structs[name]) if name in structs else {}
        for field, described in definition.get("properties", {}).items():
            if field in notes and "description" not in described and "$ref" not in described:
                described["description"] = notes[field]


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


# -- all of it


def everything(*, with_code: bool) -> Iterator[tuple[Path, str]]:
    """Every derived file with its text."""
    if with_code:
        yield from generated_code()
    yield from schema_files()
    yield README, readme()
    yield from pages()


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

"""What is derived from the contract is current, and what it says is true of the code."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import get_args

import msgspec
import pytest

from pluginabi import handshake, limits
from pluginabi.errors import HOST_CODES
from pluginabi.frames import KINDS, CancelReason, Frame
from pluginabi.methods import HOST_METHODS, METHODS, PERMISSION_OF_CALLBACK, PERMISSIONS, PLUGIN_METHODS
from pluginabi.version import ABI_VERSIONS, FEATURES, SCHEMA_VERSION

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "proto" / "README.md").read_text(encoding="utf-8")
PROTO_FILE = ROOT / "proto" / "jackfield" / "plugin" / "v1" / "plugin.proto"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_protocol", ROOT / "proto" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table_after(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its header."""
    section = README.split(f"\n{heading}\n", 1)[1]
    lines = re.split(r"\n#+ ", section)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def test_schemas_and_tables_are_current(generate: ModuleType) -> None:
    made = dict(generate.everything(with_code=False))
    assert [str(path.relative_to(ROOT)) for path in generate.stale(made)] == []


def test_the_generated_code_is_current(generate: ModuleType) -> None:
    pytest.importorskip("grpc_tools")
    made = dict(generate.generated_code())
    described = {path: without_versions(text) for path, text in made.items()}
    for path, text in described.items():
        assert without_versions(path.read_text(encoding="utf-8")) == text, f"run make proto: {path.name}"


def test_every_field_of_every_payload_says_what_it_is(generate: ModuleType) -> None:
    structs: dict[str, type[msgspec.Struct]] = {}
    for method in METHODS.values():
        generate.collect(method.request, structs)
        generate.collect(method.response, structs)
    silent = [
        f"{name}.{field.name}"
        for name, struct in structs.items()
        for field in msgspec.inspect.type_info(struct).fields
        if not generate.field_notes(struct).get(field.name)
    ]
    assert silent == []


def test_the_links_of_the_method_reference_lead_to_its_headings() -> None:
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    headings = {title.lower().replace(".", "") for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def without_versions(code: str) -> str:
    """The descriptor and the classes; how they are spelled around it changes with the compiler."""
    found = re.findall(r"AddSerializedFile\((.*)\)|^class (\w+)", code, flags=re.MULTILINE)
    return "\n".join(a or b for a, b in found)


def test_the_newest_row_of_the_history_is_what_the_code_speaks() -> None:
    abi, schema, features, _ = table_after("### History")[-1]
    assert int(abi) == max(ABI_VERSIONS)
    assert int(schema) == SCHEMA_VERSION
    assert features == ", ".join(FEATURES)


def test_every_kind_of_frame_is_described() -> None:
    assert [row[0].strip("`") for row in table_after("## Frames")] == [*KINDS]
    for frame in get_args(Frame):
        row = next(row for row in table_after("## Frames") if row[0].strip("`") == frame.__struct_config__.tag)
        if row[0] != "`hello`":
            fields = set(re.findall(r"`(\w+)`", row[2]))
            assert fields == {field.name for field in msgspec.structs.fields(frame)}


def test_the_proto_file_has_every_kind_of_frame_with_its_fields() -> None:
    text = PROTO_FILE.read_text(encoding="utf-8")
    messages = dict(re.findall(r"^message (\w+) \{(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    for frame in get_args(Frame):
        fields = set(re.findall(r"^\s+.*?(\w+) = \d+;", messages[frame.__name__], re.MULTILINE)) - {"blobs"}
        assert fields == {field.name for field in msgspec.structs.fields(frame)}
    assert f"package jackfield.plugin.v{max(ABI_VERSIONS)};" in text


def test_every_method_has_its_schemas_and_its_row() -> None:
    schemas = {path.name for path in (ROOT / "proto" / "json" / "v1").glob("*.json")}
    assert schemas == {f"{name}.{part}.schema.json" for name in METHODS for part in ("params", "result")} | {
        f"frame.{kind}.schema.json" for kind in KINDS
    }
    assert [row[0].strip("`") for row in table_after("### Host to plugin")] == [*PLUGIN_METHODS]
    assert [row[0].strip("`") for row in table_after("### Plugin to host")] == [*HOST_METHODS]


def test_the_links_of_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README)) <= anchors
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / "proto" / path).exists()


def test_the_numbers_of_the_page_are_the_numbers_of_the_code() -> None:
    said = " ".join(README.split())
    assert limits.STREAM_WINDOW_ITEMS == 32
    assert limits.STREAM_WINDOW_BYTES == 1 << 20
    assert "**32 items and 1 MiB**" in said
    assert limits.STREAM_OVERFLOW_BYTES == 4 << 20
    assert "up to 4 MiB per stream" in said
    assert limits.DEFAULT_MAX_FRAME_BYTES == 16 << 20
    assert "(16 MiB when absent)" in said
    assert limits.FRAME_ID_SEARCH_BYTES == 4 << 10
    assert "within the first 4 KiB" in said
    assert limits.CANCEL_GRACE_S == 2.0
    assert "After 2 seconds without one" in said
    assert (limits.CALLBACK_MAX_INFLIGHT, limits.QUEUE_MAX_CALLS, limits.QUEUE_MAX_WAIT_S) == (64, 256, 5.0)
    assert "64 run at a time, 256 more wait for up to 5 seconds" in said
    assert (limits.MAX_NESTING_DEPTH, limits.MAX_NESTED_CALLS_PER_REQUEST) == (8, 64)
    assert "at most 8 deep, and at most 64 per client request" in said
    assert (limits.DEFAULT_MAX_INFLIGHT, limits.DEFAULT_MAX_STREAMS) == (64, 1000)
    assert "64 when absent, 1 without any feature" in said
    assert handshake.HELLO_TIMEOUT_S == 10.0
    assert "within 10 seconds" in said
    assert limits.BODY_HEADROOM_BYTES == 64 << 10
    assert "less 64 KiB" in said
    for reason in get_args(CancelReason):
        assert f"`{reason}`" in said


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq")
def test_the_shell_plugin_of_the_page_works() -> None:
    [script] = re.findall(r"```sh\n(jq .*?)```", README, re.DOTALL)
    told = '{"kind":"hello","abi":[1],"schema":1}\n{"kind":"call","id":5,"method":"model.route","params":{}}\n'
    done = subprocess.run(["sh", "-c", script], input=told, capture_output=True, text=True, timeout=60, check=True)
    hello, answer = [json.loads(line) for line in done.stdout.splitlines()]
    assert handshake.judge(msgspec.convert(hello, Frame), plugin_id="cheap-first").max_inflight == 1
    assert answer == {"kind": "result", "id": 5, "ok": True, "result": {"target_kind": "provider", "target": "gemini"}}


@pytest.mark.parametrize("line", re.findall(r'^(\{"kind".*\})$', README, re.MULTILINE))
def test_the_frames_of_the_page_are_good_frames(line: str) -> None:
    assert msgspec.json.decode(line, type=Frame)


def test_a_schema_accepts_what_the_struct_accepts_and_says_what_a_body_is() -> None:
    schema = json.loads((ROOT / "proto" / "json" / "v1" / "executor.execute.params.schema.json").read_text())
    assert schema["$id"] == "urn:jackfield:plugin:v1:executor.execute.params"
    body = schema["$defs"]["Body"]
    assert (body["minProperties"], body["maxProperties"]) == (1, 1)
    assert set(body["properties"]) == {"json", "text", "base64"}


def test_the_method_table_is_consistent() -> None:
    assert set(PERMISSION_OF_CALLBACK) == set(HOST_METHODS)
    assert set(PERMISSION_OF_CALLBACK.values()) <= set(PERMISSIONS)
    assert {method.name for method in METHODS.values() if method.stream} == {
        "executor.execute_stream",
        "host.http.do_stream",
        "host.model.execute_stream",
    }
    for name, method in METHODS.items():
        assert name == method.name
        assert (method.direction == "plugin_to_host") == name.startswith("host.")
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name)
        assert msgspec.json.decode(b"{}", type=method.response) == method.response()
    assert all(code == code.lower() for code in HOST_CODES)

"""Regenerates what is derived from the contract: `python proto/generate.py [--check]`, or `make proto`.

- `pluginabi/_pb/` from the .proto files (needs grpcio-tools; everything else needs nothing but the project)
- `proto/json/v1/*.schema.json` from the structs
- the tables between the markers of `proto/README.md` from the method table and the error codes

With `--check` nothing is written; the exit code is 1 and the stale files are named when something is not current.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

PROTO = ROOT / "proto"
GENERATED_CODE = ROOT / "pluginabi" / "_pb"
PROTO_FILE = "jackfield/plugin/v1/plugin.proto"


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
    code = re.sub(r"^_runtime_version\.ValidateProtobufRuntimeVersion\(.*?^\)\n", "", code, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^# Protobuf Python Version: .*\n", "", code, flags=re.MULTILINE)


def everything(*, with_code: bool) -> Iterator[tuple[Path, str]]:
    """Every derived file with its text."""
    from proto.tables import readme
    from proto.schemas import schema_files

    if with_code:
        yield from generated_code()
    yield from schema_files(PROTO / "json" / "v1")
    yield PROTO / "README.md", readme(PROTO / "README.md")


def stale(*, with_code: bool) -> list[Path]:
    """The files that are not current, schema files that should not be there included."""
    made = dict(everything(with_code=with_code))
    old = [path for path, text in made.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    return old + [path for path in (PROTO / "json" / "v1").glob("*.json") if path not in made]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something is not current")
    parser.add_argument("--no-code", action="store_true", help="leave out what needs grpcio-tools")
    arguments = parser.parse_args()
    with_code = not arguments.no_code
    if arguments.check:
        old = stale(with_code=with_code)
        for path in old:
            sys.stderr.write(f"not current: {path.relative_to(ROOT)} (run `make proto`)\n")
        return 1 if old else 0
    for path in stale(with_code=with_code):
        path.unlink(missing_ok=True)
    for path, text in everything(with_code=with_code):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

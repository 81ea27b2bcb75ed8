"""Published frames decode for ever: a file of tests/golden/frames is added, never changed.

A file has three parts: the frame as a JSON line, as a gRPC message in base64, and what both mean.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pluginabi.codec import decode_frame, encode_frame
from pluginabi.frames import KINDS, Frame
from pluginabi.grpc_frames import from_message, to_message

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "frames" / "v1"
FILES = sorted(GOLDEN.glob("*.golden"))


def parts(path: Path) -> tuple[bytes, bytes, object]:
    line, message, meaning = path.read_text(encoding="utf-8").split("\n---\n")
    return line.encode(), base64.b64decode(message), msgspec.json.decode(meaning)


def values(part: Any) -> Any:
    """A frame with every field, defaults included, as plain values."""
    if isinstance(part, msgspec.Struct):
        return {name: values(getattr(part, name)) for name in part.__struct_fields__}
    if isinstance(part, msgspec.Raw):
        return msgspec.json.decode(part)
    if isinstance(part, Mapping):
        return {key: values(value) for key, value in part.items()}
    return [values(item) for item in part] if isinstance(part, (list, tuple)) else part


def meaning_of(frame: Frame) -> object:
    return msgspec.json.decode(encode_frame(frame))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_json_frame_of_version_1_still_means_the_same(path: Path) -> None:
    line, _, meaning = parts(path)
    assert msgspec.json.decode(line) == meaning
    assert meaning_of(decode_frame(line)) == meaning


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_grpc_frame_of_version_1_still_means_the_same(path: Path) -> None:
    line, message, _ = parts(path)
    assert values(from_message(message)) == values(decode_frame(line))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_both_carriers_still_write_what_was_published(path: Path) -> None:
    line, message, _ = parts(path)
    frame = decode_frame(line)
    assert encode_frame(frame) == line
    assert to_message(frame) == message


def test_every_kind_has_a_golden_frame() -> None:
    kinds = {msgspec.json.decode(parts(path)[0])["kind"] for path in FILES}
    assert kinds == set(KINDS)


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"ping","id":9}\r',
        b' { "id" : 9 ,\t"kind" : "ping" } ',
        b'{"kind":"ping","id":9,"sent_by":"a later version","nested":{"x":[1]}}',
    ],
    ids=["crlf", "spaces-and-order", "unknown-fields"],
)
def test_a_frame_may_be_spelled_differently(line: bytes) -> None:
    assert meaning_of(decode_frame(line)) == {"kind": "ping", "id": 9}

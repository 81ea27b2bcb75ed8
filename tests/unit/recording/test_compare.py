"""Where two answers differ, and where they do not."""

import msgspec
import pytest

from host.recording.compare import differences
from host.recording.format import Happened, Head, RecordingError, Tail, read_recording


def places(recorded, now, **options):
    return [(it.at, it.recorded, it.now) for it in differences(recorded, now, **options)]


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        (Happened(answer={}), Happened(answer=None)),
        (Happened(answer={"a": 1}, usage={"input_tokens": 1}), Happened(answer={"a": 1})),
        (Happened(answer={"body": {"text": '{"a":1}'}}), Happened(answer={"body": {"json": {"a": 1}}})),
        (
            Happened(answer={}, items=[{"raw": {"text": "ab"}}, {"raw": {"text": "c"}}]),
            Happened(answer={}, items=[{"raw": {"text": "abc"}}]),
        ),
        (
            Happened(answer={}, items=[{"body": {"json": 1}}], items_cut=True),
            Happened(answer={}, items=[{"body": {"json": 1}}, {"body": {"json": 2}}]),
        ),
        (Happened(error={"message": "no", "details": {"at": 1}}), Happened(error={"message": "no"})),
    ],
    ids=["empty", "usage", "forms", "cuts", "rest", "details"],
)
def test_these_are_the_same_decision(recorded, now):
    assert places(recorded, now) == []


def test_a_difference_names_its_place():
    recorded = Happened(answer={"target": "a", "headers": {"x/y": ["1", "2"]}})
    now = Happened(answer={"target": "b", "headers": {"x/y": ["1"]}, "reason": "new"})
    assert places(recorded, now) == [
        ("/answer/target", "a", "b"),
        ("/answer/headers/x~1y/1", "2", "(nothing)"),
        ("/answer/reason", "(nothing)", "new"),
    ]
    assert places(recorded, now, ignore=["/answer/headers", "/answer/reason"]) == [("/answer/target", "a", "b")]


def test_an_error_instead_of_an_answer_is_a_difference():
    found = places(Happened(answer={"a": 1}), Happened(error={"message": "no", "http_status": 429}))
    assert [at for at, _, _ in found] == ["/answer", "/error"]


def write(path, *lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else msgspec.json.encode(line) for line in lines))
    return path


def test_a_file_that_was_cut_off_in_a_line_is_read_to_there(tmp_path):
    call = b'{"kind":"call","number":1,"method":"model.route"}'
    recording = read_recording(write(tmp_path / "r", Head(plugin="p"), call, b'{"kind":"call","num'))
    assert [line.number for line in recording.calls] == [1] and recording.tail is None
    whole = read_recording(write(tmp_path / "w", Head(plugin="p"), call.replace(b"1", b"2", 1), call, Tail(reason="x")))
    assert [line.number for line in whole.calls] == [1, 2] and whole.tail == Tail(reason="x")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([b""], ":1: this is no recording"),
        ([Tail(reason="x")], ":1: this is no recording"),
        ([Head(plugin="p", version=2)], "a recording of version 2"),
        ([Head(plugin="p"), b"{}", Tail(reason="x")], ":2: "),
    ],
)
def test_a_file_that_is_no_recording_is_refused_with_the_line(tmp_path, lines, said):
    with pytest.raises(RecordingError, match=said):
        read_recording(write(tmp_path / "r", *lines))

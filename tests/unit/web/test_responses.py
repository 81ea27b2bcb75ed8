"""The Responses API: whole valid events only, repaired, and always one terminal event."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from host.web.responses_stream import ResponsesFrames
from pluginabi.body import Body, StreamItem
from pluginapi.protocols.sse import SseParser
from tests.support.web import Proxy, event, failure, raw

PATH = "/v1/responses"
STREAM = {"model": "m", "stream": True, "input": "hi"}
CREATED = '{"type":"response.created","response":{"id":"resp-1"}}'
DELTA = '{"type":"response.output_text.delta","sequence_number":4,"delta":"a"}'


def completed(output: Any = ()) -> str:
    return json.dumps({"type": "response.completed", "response": {"id": "r", "output": list(output)}})


def done(item: Any, index: int | None = None) -> str:
    place = {} if index is None else {"output_index": index}
    return json.dumps({"type": "response.output_item.done", **place, "item": item})


def write(chunks: Sequence[str | bytes], **options: Any) -> tuple[bytes, ResponsesFrames]:
    """All raw chunks and the end of the stream through a writer."""
    writer = ResponsesFrames(**options)
    out = b""
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else chunk
        out += writer.item(StreamItem(raw=Body.exact(data)))
        if writer.failure is not None:
            return out, writer
    return out + writer.end(), writer


def events(out: bytes) -> list[Any]:
    return [json.loads(each.data) for each in SseParser().feed(out)]


def output_of(out: bytes) -> Any:
    return events(out)[-1]["response"]["output"]


CALL = {"type": "function_call", "name": "shell", "call_id": "c", "arguments": '{"cmd":["ls","-l"]}'}
REASONING = {"type": "reasoning", "id": "rs"}


def test_FR01_data_lines_without_line_ends_are_frames_of_their_own_and_the_output_is_filled_in() -> None:
    out, _ = write([f"data: {done(CALL)}", f"data: {completed()}"])
    assert output_of(out) == [CALL]
    assert len(events(out)) == 2


def test_FR02_items_are_put_in_the_order_of_their_index() -> None:
    out, _ = write([f"data: {done(CALL, 1)}\n\n", f"data: {done(REASONING, 0)}\n\n", f"data: {completed()}\n\n"])
    assert output_of(out) == [REASONING, CALL]


def test_FR03_items_without_an_index_come_last() -> None:
    out, _ = write([f"data: {done(REASONING)}\n\n", f"data: {done(CALL, 1)}\n\n", f"data: {completed()}\n\n"])
    assert output_of(out) == [CALL, REASONING]


def test_FR04_a_completed_event_over_several_data_lines_is_repaired() -> None:
    head, tail = completed().split(" ", 1)
    out, _ = write([f"data: {done(CALL)}\n\ndata: {head}\ndata: {tail}\n\n"])
    assert output_of(out) == [CALL]


def test_FR06_a_whole_frame_passes_unchanged() -> None:
    frame = f"event: response.completed\ndata: {completed([CALL])}\n\n".encode()
    out, writer = write([frame])
    assert out == frame + b"\n"
    assert writer.failure is None


def test_FR07_a_frame_in_pieces_is_put_together() -> None:
    writer = ResponsesFrames()
    pieces = ['data: {"type":"response.created"', ',"response":{"id":"resp-1"}}', "\n\n"]
    out = b"".join(writer.item(StreamItem(raw=Body(text=piece))) for piece in pieces)
    assert out == f"data: {CREATED}\n\n".encode()


def test_FR08_a_frame_that_was_cut_off_is_dropped() -> None:
    out, writer = write(['data: {"type":"response.created"'])
    assert out == b""
    assert writer.failure is not None


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_FR09_no_line_end_is_added_where_one_follows(line_end: str) -> None:
    out, _ = write(["event: response.completed", f"{line_end}data: {completed([CALL])}{line_end}{line_end}"])
    assert out == f"event: response.completed\ndata: {completed([CALL])}\n\n\n".encode()


def test_FR11_a_later_item_replaces_one_with_the_same_index() -> None:
    newer = {**REASONING, "id": "rs2"}
    out, _ = write([f"data: {done(REASONING, 0)}\n\ndata: {done(newer, 0)}\n\ndata: {completed()}\n\n"])
    assert output_of(out) == [newer]


@pytest.mark.parametrize("item", [{"id": "x"}, {"type": " "}, {"type": 7}, "text", None])
def test_FR12_an_item_without_a_type_is_not_remembered(item: Any) -> None:
    out, _ = write([f"data: {done(item)}\n\ndata: {completed()}\n\n"])
    assert output_of(out) == []


def test_FR13_DONE_is_a_frame_of_its_own() -> None:
    writer = ResponsesFrames()
    assert writer.item(StreamItem(raw=Body(text=f"data: {CREATED}\n\ndata: [DONE]\n\n"))) == (
        f"data: {CREATED}\n\ndata: [DONE]\n\n".encode()
    )


def test_FR14_CRLF_separates_frames_too() -> None:
    out, _ = write([f"data: {CREATED}\r\n\r\ndata: {completed([CALL])}\r\n\r\n"])
    assert out == f"data: {CREATED}\n\ndata: {completed([CALL])}\n\n\n".encode()


@pytest.mark.parametrize("output", ['"text"', "[1]", "[ {} ]"])
def test_an_output_that_is_there_is_left_alone(output: str) -> None:
    frame = f'data: {{"type":"response.completed","response":{{"output":{output}}}}}\n\n'
    out, _ = write([f"data: {done(CALL)}\n\n", frame])
    assert out.endswith(frame.encode() + b"\n")


@given(st.lists(st.integers(min_value=0, max_value=400), max_size=10))
def test_any_split_of_the_wire_bytes_gives_the_same_frames(cuts: list[int]) -> None:
    text = json.dumps({"type": "response.output_text.delta", "delta": "data: x event: y\n: z é"}, ensure_ascii=False)
    wire = (
        f"event: response.created\r\ndata: {CREATED}\r\n\r\n: comment\n\nevent: response.output_text.delta\n"
        f"data: {text}\n\ndata: {done(CALL, 0)}\n\nevent: response.completed\ndata: {completed()}\n\n"
    ).encode()
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[start:end] for start, end in itertools.pairwise(edges)]
    assert write(pieces)[0] == write([wire])[0]


@given(st.integers(min_value=0, max_value=400))
def test_a_cut_at_any_byte_gives_exactly_one_terminal_event(cut: int) -> None:
    wire = f"data: {CREATED}\n\ndata: {DELTA}\n\ndata: {completed([CALL])}\n\n".encode()
    out, writer = write([wire[: min(cut, len(wire))]])
    if writer.failure is not None:
        out += writer.error(writer.failure)
    kinds = [each["type"] for each in events(out)]
    assert [kind for kind in kinds if kind in ("response.completed", "error")] == kinds[-1:]


# -- over HTTP


async def test_SB07_a_truncated_first_frame_is_a_502_and_nothing_is_delivered(proxy: Proxy) -> None:
    proxy.gateway.streams(raw('event: response.completed\ndata: {"type"'))
    answer = await proxy.post(PATH, STREAM)
    assert (answer.status, answer.headers["Content-Type"]) == (502, "application/json")


async def test_SB08_an_event_line_and_its_data_line_may_come_apart(proxy: Proxy) -> None:
    proxy.gateway.streams(raw("event: response.completed"), raw(f"data: {completed([CALL])}"))
    answer = await proxy.post(PATH, STREAM)
    assert answer.text == f"event: response.completed\ndata: {completed([CALL])}\n\n\n"


async def test_events_are_named_by_their_type(proxy: Proxy) -> None:
    proxy.gateway.streams(event(CREATED), event(completed([CALL]), "response.completed"))
    answer = await proxy.post(PATH, STREAM)
    assert answer.text == (
        f"event: response.created\ndata: {CREATED}\n\nevent: response.completed\ndata: {completed([CALL])}\n\n"
    )


async def test_LS02_a_stream_that_stops_without_a_terminal_event_ends_with_an_error(proxy: Proxy) -> None:
    proxy.gateway.streams(event(DELTA))
    answer = await proxy.post(PATH, STREAM)
    delta, error = events(answer.body)
    assert delta["delta"] == "a"
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", "upstream_stream_broken", 5)
    assert "response.output_text.delta" in error["message"]


async def test_LS03_a_malformed_frame_behind_a_valid_one_is_an_error_in_the_stream(proxy: Proxy) -> None:
    proxy.gateway.streams(raw(f'data: {DELTA}\n\ndata: {{"broken\n\ndata: {DELTA}\n\n'))
    answer = await proxy.post(PATH, STREAM)
    delta, error = events(answer.body)
    assert (delta["type"], error["type"]) == ("response.output_text.delta", "error")
    assert "8 bytes" in error["message"]


async def test_LS04_JSON_over_several_data_lines_and_chunks_is_one_frame(proxy: Proxy) -> None:
    head, tail = completed([CALL]).split(" ", 1)
    proxy.gateway.streams(raw(f"data: {head}\nda"), raw(f"ta: {tail}\n"), raw("\n"))
    answer = await proxy.post(PATH, STREAM)
    assert output_of(answer.body) == [CALL]


async def test_LS05_an_error_behind_an_incomplete_first_frame_is_a_status(proxy: Proxy) -> None:
    proxy.gateway.streams(raw('data: {"type"'), failure("down", http_status=503))
    assert (await proxy.post(PATH, STREAM)).status == 503


async def test_LS06_a_stream_without_payload_is_a_status(proxy: Proxy) -> None:
    proxy.gateway.streams()
    assert (await proxy.post(PATH, STREAM)).status == 502


TERMINAL = ["response.completed", "response.incomplete", "response.failed", "response.done"]


@pytest.mark.parametrize("kind", TERMINAL, ids=lambda kind: f"LS-07-{kind}")
@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_nothing_follows_the_terminal_event(proxy: Proxy, kind: str, as_raw: bool) -> None:
    last = json.dumps({"type": kind, "response": {"output": [1]}})
    if as_raw:
        stream = proxy.gateway.streams(raw(f"data: {last}\n\ndata: {DELTA}\n\n"), failure("late"))
    else:
        stream = proxy.gateway.streams(event(last), event(DELTA), failure("late"))
    answer = await proxy.post(PATH, STREAM)
    assert [each["type"] for each in events(answer.body)] == [kind]
    await stream.closed.wait()
    assert stream.close_reason == "finished"


SECRET = "call with Bearer abcdef1234567890 and sk-proj-abcdefgh12345678"


@pytest.mark.parametrize("name", [None, "error"])
async def test_LS08_an_upstreams_error_event_is_cleaned(proxy: Proxy, name: str | None) -> None:
    error = {"type": "error", "code": "c", "message": SECRET + " x" * 5000, "param": "p", "internal": "host-17"}
    proxy.gateway.streams(event(DELTA), event(error, name), event(DELTA))
    answer = await proxy.post(PATH, STREAM)
    shown = events(answer.body)[1]
    assert set(shown) == {"type", "code", "message", "param", "sequence_number"}
    assert "1234567" not in shown["message"]
    assert len(shown["message"]) == 2048
    assert len(events(answer.body)) == 2


async def test_the_error_of_a_failed_response_is_cleaned(proxy: Proxy) -> None:
    failed = {
        "type": "response.failed",
        "response": {"id": "r", "error": {"code": "c", "message": SECRET, "host": "internal-17"}},
    }
    proxy.gateway.streams(event(failed))
    shown = events((await proxy.post(PATH, STREAM)).body)[0]["response"]
    assert shown["id"] == "r"
    assert set(shown["error"]) == {"code", "message"}
    assert "1234567" not in shown["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [{"User-Agent": "codex_cli_rs/0.98.0 (Ubuntu)"}, {"Originator": "codex_vscode"}, {"Originator": "Codex Desktop"}],
    ids=["LS-09-cli", "LS-09-vscode", "LS-09-desktop"],
)
@pytest.mark.parametrize("from_upstream", [True, False])
async def test_a_codex_client_gets_response_failed(proxy: Proxy, headers: dict[str, str], from_upstream: bool) -> None:
    last = event({"type": "error", "code": "c", "message": "m"}) if from_upstream else failure("m", code="c")
    proxy.gateway.streams(event(DELTA), last)
    answer = await proxy.post(PATH, STREAM, headers=headers)
    assert "event: response.failed\n" in answer.text
    shown = events(answer.body)[1]
    assert shown["sequence_number"] == 5
    assert shown["response"]["status"] == "failed"
    assert (shown["response"]["error"]["code"], shown["response"]["error"]["message"]) == ("c", "m")


async def test_ER16_an_error_in_a_responses_stream_has_a_top_level_type(proxy: Proxy) -> None:
    proxy.gateway.streams(event(DELTA), failure("m", http_status=500), headers={})
    answer = await proxy.post(PATH, STREAM, headers={"User-Agent": "OpenAI/Python"})
    assert "\n\n\nevent: error\n" in answer.text
    assert '"type":"error"' in answer.text
    assert '"error":{' not in answer.text


@pytest.mark.parametrize("path", ["/v1/responses/compact", "/backend-api/codex/responses/compact"])
async def test_RS01_compact_refuses_to_stream(proxy: Proxy, path: str) -> None:
    answer = await proxy.post(path, STREAM)
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert proxy.gateway.requests == []


async def test_RS02_compact_is_executed_whole(proxy: Proxy) -> None:
    body = b'{"model":"m", "input":"hello"}'
    await proxy.post("/v1/responses/compact", body)
    request = proxy.gateway.request
    assert (request.alt, request.protocol, request.stream, request.body) == (
        "responses/compact",
        "openai-response",
        False,
        body,
    )


@pytest.mark.parametrize("stream", ["false", "null", '"true"', "0"], ids=["RS-03", "null", "text", "zero"])
async def test_compact_drops_the_member_stream_and_nothing_else(proxy: Proxy, stream: str) -> None:
    await proxy.post("/v1/responses/compact", f'{{"model":"m","stream":{stream},"n":1.50,"x":[ 1]}}'.encode())
    assert proxy.gateway.request.body == b'{"model":"m","n":1.50,"x":[ 1]}'


@pytest.mark.parametrize("path", [PATH, "/v1/responses/compact", "/backend-api/codex/responses"])
async def test_RS07_malformed_encrypted_content_is_forwarded(proxy: Proxy, path: str) -> None:
    body = json.dumps({"model": "m", "input": [{"type": "reasoning", "encrypted_content": "%%%"}]}).encode()
    assert (await proxy.post(path, body)).status == 200
    assert proxy.gateway.request.body == body

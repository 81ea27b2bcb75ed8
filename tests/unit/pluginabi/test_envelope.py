"""The envelope: vectors of group E, and errors that keep what they say. A vector that was replaced keeps its number."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from pluginabi import Body, ErrorBody, PluginError, PluginTransportError, host_error, memory_pair, normalised
from pluginabi.codec import BrokenFrame, decode_frame, decode_params, decode_result, encode, explain
from pluginabi.errors import HOST_CODES, PHASE_CODES, PluginTimeout
from pluginabi.frames import Call
from pluginabi.immutable import FrozenDict, freeze, freeze_headers, thaw
from pluginabi.payloads.routing import ModelRouteRequest, ModelRouteResponse
from tests.support.wire import PLUGIN_ID, PROFILES, Side, Tasks, within


async def answer_to_a_call(line: str) -> Any:
    """What a caller gets when the plugin writes this line in answer to call 1."""
    tasks = Tasks()
    ours, theirs = memory_pair()
    host = Side(ours, "host", PROFILES["full"], 1 << 20, tasks)
    call = host.session.start_call("model.route", b"{}")
    assert theirs._writer is not None
    theirs._writer.write(line.encode() + b"\n")
    try:
        return decode_result("model.route", (await within(call.reply())).result, plugin_id=PLUGIN_ID)
    except (PluginError, PluginTransportError) as error:
        return error
    finally:
        await within(host.session.close())
        await within(host.reader)
        theirs.abort()
        await tasks.stop()


async def test_E31_an_error_envelope_keeps_its_status_whatever_carries_it() -> None:
    error = await answer_to_a_call(
        '{"kind":"result","id":1,"ok":false,"error":{"code":"busy","message":"slow down","http_status":429}}'
    )
    assert isinstance(error, PluginError)
    assert (error.http_status, error.code, str(error)) == (429, "busy", "slow down")


async def test_E32_nonsense_in_place_of_an_answer_is_a_transport_error_that_names_plugin_method_and_reason() -> None:
    error = await answer_to_a_call('{"kind":"result","id":1,"ok":tru')
    assert isinstance(error, PluginTransportError)
    assert (error.plugin_id, error.method, error.phase, error.http_status) == (PLUGIN_ID, "model.route", "decode", 502)
    assert "result" in error.cause
    assert "truncated" in error.cause


async def test_E33_a_blank_message_becomes_plugin_call_failed_without_a_status_of_its_own() -> None:
    error = await answer_to_a_call('{"kind":"result","id":1,"ok":false,"error":{"message":"  "}}')
    assert isinstance(error, PluginError)
    assert (str(error.body.message), error.http_status, error.code) == ("plugin call failed", 500, "plugin_error")


async def test_E34_an_envelope_without_error_is_plugin_call_failed() -> None:
    error = await answer_to_a_call('{"kind":"result","id":1,"ok":false}')
    assert isinstance(error, PluginError)
    assert (error.body.message, error.http_status) == ("plugin call failed", 500)


@pytest.mark.parametrize("result", ["[]", '"text"', "5", "true", '{"target":5}'])
async def test_E36_a_result_of_the_wrong_shape_is_a_decode_error_that_names_the_method(result: str) -> None:
    error = await answer_to_a_call(f'{{"kind":"result","id":1,"ok":true,"result":{result}}}')
    assert isinstance(error, PluginTransportError)
    assert error.cause.startswith("decode plugin result model.route: ")
    assert error.phase == "decode"


async def test_E37_an_error_of_the_plugin_is_not_prefixed_with_the_method() -> None:
    error = await answer_to_a_call('{"kind":"result","id":1,"ok":false,"error":{"message":"no such model"}}')
    assert str(error) == "no such model"


def test_E38_metadata_keeps_what_json_can_carry_and_drops_the_rest() -> None:
    metadata = {
        "cb": print,
        "ch": object(),
        "n": 1,
        "nested": {"f": print, "k": "v"},
        "list": [1, print],
    }
    request = ModelRouteRequest(metadata=freeze(metadata))
    assert msgspec.json.decode(encode(request)) == {"metadata": {"n": 1, "nested": {"k": "v"}, "list": [1]}}


def test_E39_metadata_of_functions_only_carries_nothing() -> None:
    sent = encode(ModelRouteRequest(metadata=freeze({"cb": print, "other": len})))
    received = decode_params("model.route", Raw(sent))
    assert received.metadata == {}
    assert freeze(print) is None


def test_E40_a_body_of_an_error_travels_as_the_body_not_as_its_message() -> None:
    body = {"error": {"message": "quota", "type": "insufficient_quota"}}
    error = PluginError("quota exceeded", http_status=402, body=body, body_protocol="openai")
    received = msgspec.json.decode(encode(error.body), type=ErrorBody)
    assert received.message == "quota exceeded"
    assert isinstance(received.body, Body)
    assert received.body.value() == body
    assert received.body_protocol == "openai"
    json_in_the_message = normalised(ErrorBody(message='{"a":1}'), default_origin="plugin")
    assert json_in_the_message.message == '{"a":1}'
    assert json_in_the_message.body is UNSET


def test_a_cycle_in_metadata_is_cut() -> None:
    looped: dict[str, object] = {"n": 1}
    looped["self"] = looped
    looped["list"] = [looped, 2]
    assert thaw(freeze(looped)) == {"n": 1, "list": [2]}


def test_what_a_plugin_sees_cannot_be_changed_and_a_copy_can() -> None:
    frozen = freeze({"a": {"b": [1]}})
    with pytest.raises(TypeError, match="immutable"):
        frozen["a"]["c"] = 1
    with pytest.raises(TypeError, match="immutable"):
        frozen.update(x=1)
    with pytest.raises(TypeError, match="immutable"):
        frozen |= {"x": 1}
    copy = thaw(frozen)
    copy["a"]["b"].append(2)
    assert (thaw(frozen), copy) == ({"a": {"b": [1]}}, {"a": {"b": [1, 2]}})
    assert encode(frozen) == b'{"a":{"b":[1]}}'


def test_headers_are_lower_cased_and_keep_every_value_in_order() -> None:
    headers = freeze_headers([("X-A", "1"), ("x-b", "2"), ("x-a", "3")])
    assert headers == {"x-a": ("1", "3"), "x-b": ("2",)}
    assert isinstance(headers, FrozenDict)


@given(st.integers(), st.text(max_size=5), st.text(max_size=5), st.sampled_from(["host", "plugin", "upstream", None]))
def test_a_normalised_error_always_fits_the_contract(status: int, message: str, code: str, origin: str | None) -> None:
    error = normalised(
        ErrorBody(message=message, code=code, http_status=status, origin=origin, details={"k": 1}),
        default_origin="plugin",
    )
    assert error.message == (message.strip() or "plugin call failed")
    assert error.code.strip()
    assert 400 <= error.http_status <= 599
    assert error.origin == ("upstream" if origin == "upstream" else "plugin")
    assert error.details["k"] == 1
    assert (status == error.http_status) != ("http_status" in error.details)
    assert normalised(error, default_origin="plugin") == error


def test_an_error_that_the_host_marked_keeps_its_origin() -> None:
    for origin in ("host", "plugin", "upstream"):
        assert normalised(ErrorBody(message="x", origin=origin), default_origin="host").origin == origin
    assert normalised(ErrorBody(message="x"), default_origin="host").origin == "host"


@pytest.mark.parametrize(("phase", "code"), sorted(PHASE_CODES.items()))
def test_a_broken_plugin_has_the_code_and_status_of_its_phase(phase: str, code: str) -> None:
    error = PluginTransportError("p", "model.route", phase=phase, cause="because")  # type: ignore[arg-type]
    body = error.to_error_body()
    assert (body.code, body.http_status, body.origin) == (code, HOST_CODES[code], "host")
    assert "p" in body.message
    assert "because" in body.message
    assert body.retry_after_ms == (1000 if body.http_status == 503 else None)


def test_every_host_code_has_an_error_status() -> None:
    for code, status in HOST_CODES.items():
        assert 400 <= status <= 599
        assert host_error(code, "x").body == ErrorBody(message="x", code=code, http_status=status, origin="host")
    with pytest.raises(KeyError):
        host_error("no_such_code", "x")


def test_a_timeout_is_a_504_that_says_how_long() -> None:
    error = PluginTimeout("p", "model.route", timeout_ms=500)
    assert (error.http_status, error.code) == (504, "plugin_timeout")
    assert "500 ms" in str(error)


def test_params_that_do_not_fit_are_answered_not_raised_into_the_reader() -> None:
    with pytest.raises(PluginError) as unknown:
        decode_params("no.such.method", Raw(b"{}"))
    assert unknown.value.code == "method_not_found"
    with pytest.raises(PluginError) as wrong:
        decode_params("model.route", Raw(b"[]"))
    assert wrong.value.code == "plugin_protocol_error"
    assert "model.route" in str(wrong.value)


@pytest.mark.parametrize(
    "line",
    [b'{"kind":"call","id":4,"params":{}}', b'{"kind":"call","id":4,"method":"x","params":"\xff"}'],
    ids=["missing-field", "invalid-utf8-inside-an-embedded-body"],
)
def test_a_frame_that_cannot_be_decoded_still_says_whose_it_is(line: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)) as caught:
        decode_frame(line)
    broken = explain(line, caught.value)
    assert isinstance(broken, BrokenFrame)
    assert (broken.kind, broken.id, broken.oversize) == ("call", 4, False)


def test_nesting_without_end_is_a_broken_frame_not_a_crash() -> None:
    line = b'{"kind":"result","id":2,"ok":true,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(RecursionError) as caught:
        decode_frame(line)
    broken = explain(line, caught.value)
    assert isinstance(broken, BrokenFrame)
    assert (broken.kind, broken.id) == ("result", 2)


def test_unknown_fields_are_ignored_everywhere() -> None:
    frame = decode_frame(b'{"new":1,"kind":"call","method":"model.route","id":3,"params":{"new":{}},"more":[]}')
    assert isinstance(frame, Call)
    assert decode_params("model.route", frame.params) == ModelRouteRequest()
    assert decode_result("model.route", Raw(b'{"new":1}'), plugin_id="p") == ModelRouteResponse()

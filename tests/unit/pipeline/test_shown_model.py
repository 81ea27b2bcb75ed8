"""`force-mapping`: answers name the model that the client asked for (spec credentials 12.5)."""

import json
from dataclasses import replace

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelAliasEntry, ModelEntry, ProviderKey
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.pipeline.shown_model import ArrayCutter, ShownModel
from host.pipeline.state import build_state
from pluginabi.body import Body
from pluginabi.errors import PluginError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.intercept import StreamInterceptResponse
from pluginabi.payloads.lifecycle import ExecutorRegistration
from tests.support.pipeline import (
    FakePlugin,
    World,
    answering,
    client_request,
    executor,
    raw_bytes,
    read_all,
    snapshot,
    streaming,
    world,
)

UPSTREAM = "deepseek-v3-0324"
CHUNK = b'data: {"id":"1", "model" : "deepseek-v3-0324","choices":[{"delta":{"content":"\\u00e9"}}]}\n\n'
SHOWN = CHUNK.replace(b"deepseek-v3-0324", b"fast")
END = b'data: {"model":"fast","choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def acme(*, force_mapping: bool = True, prefix: str = "") -> Config:
    model = ModelEntry(name=UPSTREAM, alias="fast", force_mapping=force_mapping)
    provider = CompatProvider(
        name="acme", base_url="https://a.test", prefix=prefix, api_key_entries=[CompatKey(api_key="k")], models=[model],
        responses=True,
    )  # fmt: skip
    return Config(openai_compatibility=[provider])


def gemini(**fields) -> World:
    model = ModelEntry(name="gemini-2.5-flash", alias="fast", force_mapping=True)
    registration = ExecutorRegistration(input_formats=("gemini",), output_formats=("gemini",))
    return world(
        executor(providers=["gemini"], executor=registration, **fields),
        config=Config(gemini_api_key=[ProviderKey(api_key="k", models=[model])]),
    )


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ('{ "model" : "up", "n": 1.50e1 }', '{ "model" : "fast", "n": 1.50e1 }'),
        ('{"candidates":[],"modelVersion":"up"}', '{"candidates":[],"modelVersion":"fast"}'),
        (
            '{"type":"response.created","response":{"error":null,"model":"up"}}',
            '{"type":"response.created","response":{"error":null,"model":"fast"}}',
        ),
        (
            '{"response":{"modelVersion":"up","x":{"model":"y"}}}',
            '{"response":{"modelVersion":"fast","x":{"model":"y"}}}',
        ),
        (
            '{"type":"message_start","message":{"stop_reason":null,"model":"up"}}',
            '{"type":"message_start","message":{"stop_reason":null,"model":"fast"}}',
        ),
        ('\n{\n  "model": "up" ,\r\n  "n": 1}\n', '\n{\n  "model": "fast" ,\r\n  "n": 1}\n'),
        ('{"model":"a","response":{"model":"b"}}', '{"model":"fast","response":{"model":"fast"}}'),
    ],
)  # fmt: skip
def test_each_place_where_protocols_name_a_model_is_rewritten_and_no_other_byte(answer, shown):
    assert ShownModel("fast").document(answer.encode()).decode() == shown


@pytest.mark.parametrize(
    "answer",
    [
        b'{"choices":[{"message":{"model":"up","content":"\\"model\\":\\"up\\""}}]}',
        b'{"model":null,"response":{"model":7},"message":"model"}',
        b'{"model":"fast"}',
        b'["model"]',
        b'{"model":"up"',
        b'{"text":"the \\"model"}',
        b"",
    ],
)
def test_anything_else_is_the_very_same_object(answer):
    assert ShownModel("fast").document(answer) is answer


def test_frames_keep_their_line_breaks_comments_and_order():
    frames = (
        b': hello "model"\r\nevent: message_start\r\ndata:{"message":{"model":"up"}}\r\n\r\n'
        b'data: {"model":\ndata: "up"}\nid: 7\n\ndata: [DONE]\n\n'
    )
    assert ShownModel("fast").raw(frames) == frames.replace(b'"up"', b'"fast"')


def test_an_array_is_rewritten_wherever_it_is_cut():
    array = b'[{"a":"\\"}]{[","modelVersion":"up"}\n,\r\n{"modelVersion":"up","b":[{"c":{}}]}\n]\n'
    expected = array.replace(b'"up"', b'"fast"')
    for cut in range(len(array) + 1):
        shown = ShownModel("fast", is_array=True)
        assert shown.raw(array[:cut]) + shown.raw(array[cut:]) == expected, cut
    shown = ShownModel("fast", is_array=True)
    assert b"".join(shown.raw(array[at : at + 1]) for at in range(len(array))) == expected


def test_a_single_object_in_place_of_an_array_is_one_element():
    assert ShownModel("fast", is_array=True).raw(b'{"response":{"model":"up"},"x":{}}') == (
        b'{"response":{"model":"fast"},"x":{}}'
    )


def test_an_array_passes_on_what_is_complete_at_once_and_keeps_the_rest():
    cutter = ArrayCutter()
    assert b"".join(cutter.feed(b'[{"a":1},{"b":')) == b'[{"a":1},'
    assert not cutter.is_whole
    assert b"".join(cutter.feed(b"2}]")) == b'{"b":2}]'
    assert cutter.is_whole


@pytest.mark.parametrize(
    ("asked", "prefix", "named"),
    [("fast", "", "fast"), ("FAST(high)", "", "FAST"), ("team/fast", "team", "team/fast")],
)
async def test_an_answer_names_the_model_that_was_asked_for(asked, prefix, named):
    upstream = executor(answering({"id": "x", "model": f"{UPSTREAM}-build7"}))
    w = world(upstream, config=acme(prefix=prefix))
    answer = await w.gateway.execute(client_request(model=asked))
    assert json.loads(answer.body) == {"id": "x", "model": named}
    assert upstream.seen("executor.execute")[0].model == UPSTREAM


async def test_without_the_setting_an_answer_stays_as_it_is_byte_for_byte():
    data = b'{ "model":"deepseek-v3-0324" }'
    w = world(
        executor(lambda _: ExecutorResponse(body=Body.exact(data)), streaming(CHUNK, END)),
        config=acme(force_mapping=False),
    )
    assert (await w.gateway.execute(client_request(model="fast"))).body == data
    stream = await w.gateway.execute_stream(client_request(model="fast", stream=True))
    assert raw_bytes(await read_all(stream)) == CHUNK + END


async def test_a_stream_that_passes_through_is_renamed_in_every_frame_wherever_it_is_cut():
    data = CHUNK + CHUNK + END
    for cut in (1, 30, len(CHUNK) - 1, len(CHUNK), len(CHUNK) + 40):
        w = world(executor(stream=streaming(data[:cut], data[cut:])), config=acme())
        stream = await w.gateway.execute_stream(client_request(model="fast", stream=True))
        assert raw_bytes(await read_all(stream)) == SHOWN + SHOWN + END
        assert stream.terminal_seen


async def test_a_last_frame_without_its_blank_line_is_renamed_too():
    last = b'data: {"model":"deepseek-v3-0324","choices":[{"delta":{},"finish_reason":"stop"}]}'
    w = world(executor(stream=streaming(CHUNK, last)), config=acme())
    stream = await w.gateway.execute_stream(client_request(model="fast", stream=True))
    assert raw_bytes(await read_all(stream)) == SHOWN + last.replace(b"deepseek-v3-0324", b"fast") + b"\n\n"


async def test_events_of_an_executor_are_renamed():
    events = [{"type": "response.created", "response": {"model": UPSTREAM, "error": None}}]
    events.append({"type": "response.completed", "response": {"model": UPSTREAM, "id": "r"}})
    w = world(executor(stream=streaming(*events)), config=acme())
    request = client_request(model="fast", stream=True, protocol="openai-response")
    found = await read_all(await w.gateway.execute_stream(request))
    assert [item.body.value()["response"]["model"] for item in found] == ["fast", "fast"]
    assert [item.event for item in found] == ["response.created", "response.completed"]
    assert found[0].body.value()["response"]["error"] is None


async def test_interceptors_see_the_name_that_clients_see_and_have_the_last_word():
    seen = []

    def intercept(request):
        seen.extend(item.body.value().get("model") for item in request.items)
        changed = [replace_model(item) for item in request.items]
        return StreamInterceptResponse(items=changed) if changed else StreamInterceptResponse()

    def replace_model(item):
        return type(item)(event=item.event, body=Body.from_value({**item.body.value(), "model": "mine"}))

    hook = FakePlugin(id="hook", hooks={"response.intercept_stream_chunk": intercept})
    w = world(executor(stream=streaming(CHUNK, END)), hook, config=acme())
    found = await read_all(await w.gateway.execute_stream(client_request(model="fast", stream=True)))
    assert seen == ["fast", "fast"]
    assert {item.body.value()["model"] for item in found if item.raw is not None and not item.is_progress} == {"mine"}


async def test_a_gemini_stream_as_an_array_is_renamed_in_whatever_pieces_it_comes():
    array = b'[{"candidates":[],"modelVersion":"gemini-2.5-flash"}\n,\n{"modelVersion":"gemini-2.5-flash"}]'
    w = gemini(stream=streaming(array[:31], array[31:70], array[70:]))
    request = client_request(model="fast", stream=True, protocol="gemini", alt="json")
    stream = await w.gateway.execute_stream(request)
    assert raw_bytes(await read_all(stream)) == array.replace(b"gemini-2.5-flash", b"fast")


async def test_of_an_array_that_is_cut_off_the_whole_elements_reach_the_client_before_the_error():
    array = b'[{"modelVersion":"gemini-2.5-flash"},{"modelVersion":"gem'
    w = gemini(stream=streaming(array))
    stream = await w.gateway.execute_stream(client_request(model="fast", stream=True, protocol="gemini", alt="json"))
    assert (await anext(stream)).raw.to_bytes() == b'[{"modelVersion":"fast"},'  # type: ignore[union-attr]
    with pytest.raises(PluginError) as raised:
        await anext(stream)
    assert raised.value.code == "upstream_stream_truncated"


async def test_an_alias_of_an_account_renames_its_answers_and_its_other_names_do_not():
    manager = CredentialManager()
    account = Credential(id="a", provider="acme", label="a", source_kind="file", auth_kind="oauth", handle="cred-a")
    manager.set_source("a.json", [account])
    upstream = executor(
        answering({"model": "up-2024"}), providers=["acme"], models=[ModelInfo(id="up"), ModelInfo(id="other")]
    )
    entries = [ModelAliasEntry(name="up", alias="mine", fork=True, force_mapping=True)]
    config = Config(oauth_model_alias={"acme": entries})
    w = world(upstream, config=config)
    w.gateway.state = build_state(config, snapshot(upstream), manager=manager, clock=w.clock)
    named = [json.loads((await w.gateway.execute(client_request(model=it))).body)["model"] for it in ("mine", "up")]
    assert named == ["mine", "up-2024"]


async def test_of_a_pool_one_entry_with_the_setting_is_enough():
    config = acme()
    provider = config.openai_compatibility[0]
    models = [ModelEntry(name="d", alias="fast"), ModelEntry(name="g", alias="fast", force_mapping=True)]
    config = Config(openai_compatibility=[type(provider)(**{**as_fields(provider), "models": models})])
    w = world(executor(lambda it: ExecutorResponse(body=Body.from_value({"model": it.model}))), config=config)
    for _ in range(2):
        assert json.loads((await w.gateway.execute(client_request(model="fast"))).body) == {"model": "fast"}


def as_fields(provider: CompatProvider) -> dict[str, object]:
    return {name: getattr(provider, name) for name in provider.__struct_fields__}


def test_a_name_that_needs_escapes_is_written_as_json():
    assert json.loads(ShownModel('a"é\\').document(b'{"model":"up"}')) == {"model": 'a"é\\'}


def test_the_lane_of_a_plain_model_carries_no_name():
    state = world(executor(answering()), config=acme(force_mapping=False)).gateway.state
    plan = state.plan("fast", method="executor.execute", source="openai", wanted="openai")
    assert [lane.answers_as for lane in plan.lanes()] == [""]
    assert replace(plan.kinds[plan.tiers[0]][0], answers_as="x").answers_as == "x"

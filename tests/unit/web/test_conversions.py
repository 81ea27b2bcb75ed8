"""Bodies that are mapped onto chat: Responses-shaped ones, and legacy completions; and the other small endpoints."""

import json
from typing import Any

import pytest

from host.pipeline.request import ClientResponse, Operation
from tests.support.web import Proxy, event, failure, raw

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


async def chat(proxy: Proxy, body: Any) -> Any:
    answer = await proxy.post(CHAT, body)
    assert answer.status == 200, answer.text
    return proxy.gateway.payload


async def test_CH01_instructions_and_input_become_messages(proxy: Proxy) -> None:
    payload = await chat(proxy, {"model": "m", "input": "hi", "instructions": "be brief"})
    assert payload["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert payload["model"] == "m"
    assert proxy.gateway.request.protocol == "openai"


CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
MESSAGE = {"role": "user", "content": [{"type": "input_text", "text": "now"}]}


async def test_CH03_a_message_between_a_call_and_its_output_waits(proxy: Proxy) -> None:
    messages = (await chat(proxy, {"model": "m", "input": [CALL, MESSAGE, OUTPUT]}))["messages"]
    assert [message["role"] for message in messages] == ["assistant", "tool", "user"]
    assert messages[0]["tool_calls"] == [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    assert messages[1] == {"role": "tool", "tool_call_id": "c1", "content": "42"}
    assert messages[2]["content"] == [{"type": "text", "text": "now"}]


async def test_a_message_behind_a_call_without_output_stays_in_place(proxy: Proxy) -> None:
    messages = (await chat(proxy, {"model": "m", "input": [CALL, MESSAGE]}))["messages"]
    assert [message["role"] for message in messages] == ["assistant", "user"]


async def test_CH04_adjacent_calls_are_one_message(proxy: Proxy) -> None:
    other = {**CALL, "call_id": "c2"}
    messages = (await chat(proxy, {"model": "m", "input": [CALL, other]}))["messages"]
    assert [call["id"] for call in messages[0]["tool_calls"]] == ["c1", "c2"]
    assert len(messages) == 1


async def test_roles_parts_reasoning_and_settings_are_converted(proxy: Proxy) -> None:
    function = {"name": "f", "parameters": {}}
    body = {
        "model": "m",
        "input": [
            {"role": "developer", "content": "rules"},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "thinking"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {
                "role": "user",
                "content": [{"text": "no type"}, {"type": "input_image", "image_url": "u", "detail": "low"}],
            },
            {"type": "reasoning", "summary": []},
            CALL,
        ],
        "max_output_tokens": 7,
        "parallel_tool_calls": True,
        "reasoning": {"effort": " HIGH "},
        "tools": [{"type": "function", **function}, {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "stream": False,
    }
    payload = await chat(proxy, body)
    messages = payload["messages"]
    assert messages[0] == {"role": "user", "content": "rules"}
    assert messages[1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}],
        "reasoning_content": "thinking",
    }
    assert messages[2]["content"] == [
        {"type": "text", "text": "no type"},
        {"type": "image_url", "image_url": {"url": "u", "detail": "low"}},
    ]
    assert messages[3]["reasoning_content"]
    assert payload["max_tokens"] == 7
    assert payload["parallel_tool_calls"] is True
    assert payload["reasoning_effort"] == "high"
    assert payload["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {}}},
        {"type": "web_search"},
    ]
    assert payload["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert payload["stream"] is False


async def test_a_converted_body_streams_only_for_the_literal_true(proxy: Proxy) -> None:
    proxy.gateway.streams(event('{"choices":[]}'))
    answer = await proxy.post(CHAT, {"model": "m", "input": "hi", "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")
    assert proxy.gateway.payload["stream"] is True


async def test_an_input_of_another_type_is_a_400(proxy: Proxy) -> None:
    answer = await proxy.post(CHAT, {"model": "m", "input": 7})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "input")


async def test_a_body_with_messages_is_never_converted(proxy: Proxy) -> None:
    body = b'{"model":"m","messages":[],"input":"x"}'
    await proxy.post(CHAT, body)
    assert proxy.gateway.request.body == body


# -- completions


async def complete(proxy: Proxy, **body: Any) -> Any:
    answer = await proxy.post(COMPLETIONS, {"model": "m", **body})
    assert answer.status == 200, answer.text
    return proxy.gateway.payload


async def test_CP01_a_prompt_becomes_a_message_and_unknown_members_are_dropped(proxy: Proxy) -> None:
    payload = await complete(proxy, prompt="x", stop=["a"], n=2, max_tokens=5.0, temperature=0.5, logprobs=3, echo=0)
    assert payload == {
        "messages": [{"role": "user", "content": "x"}],
        "model": "m",
        "stop": ["a"],
        "max_tokens": 5,
        "temperature": 0.5,
        "logprobs": True,
        "echo": False,
    }


@pytest.mark.parametrize(
    ("prompt", "content"),
    [("", "Continue."), (None, "Continue."), (["one"], "one"), (["a", "b"], '["a", "b"]'), ({"k": 1}, '{"k": 1}')],
)
async def test_a_prompt_of_any_kind_is_a_text(proxy: Proxy, prompt: Any, content: str) -> None:
    assert (await complete(proxy, prompt=prompt))["messages"][0]["content"] == content


async def test_a_number_of_another_type_is_a_400(proxy: Proxy) -> None:
    answer = await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x", "max_tokens": "5"})
    assert (answer.status, answer.json()["error"]["param"]) == (400, "max_tokens")


async def test_a_chat_answer_becomes_a_completion(proxy: Proxy) -> None:
    choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop", "logprobs": None}
    usage = {"total_tokens": 3, "cost": 1.50}
    document = {"id": "x", "created": 1, "model": "m", "object": "chat.completion", "choices": [choice], "usage": usage}
    proxy.gateway.answer = ClientResponse(status=200, body=json.dumps(document).encode())
    assert (await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x"})).json() == {
        "id": "x",
        "created": 1,
        "model": "m",
        "object": "text_completion",
        "choices": [{"index": 0, "text": "hi", "finish_reason": "stop", "logprobs": None}],
        "usage": usage,
    }


async def test_CP03_an_answer_without_choices_has_none(proxy: Proxy) -> None:
    proxy.gateway.answer = ClientResponse(status=200, body=b'{"id":"x"}')
    answer = await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x"})
    assert answer.json() == {"id": "x", "object": "text_completion", "choices": []}


CHUNKS = [
    {"id": "x", "choices": [{"index": 0, "delta": {"role": "assistant"}}]},
    {"id": "x", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]},
    {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "x", "choices": [], "usage": {"total_tokens": 3}},
]


@pytest.mark.parametrize("as_raw", [True, False], ids=["raw", "events"])
async def test_CP04_CP05_CP06_a_chat_stream_becomes_a_completions_stream(proxy: Proxy, as_raw: bool) -> None:
    if as_raw:
        wire = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in CHUNKS) + "data: [DONE]\n\ndata: late\n\n"
        proxy.gateway.streams(raw(wire[:70]), raw(wire[70:]))
    else:
        proxy.gateway.streams(*[event(chunk) for chunk in CHUNKS])
    answer = await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x", "stream": True})
    lines = answer.text.split("\n\n")
    assert lines[3:] == ["data: [DONE]", ""]
    text, finish, usage = (json.loads(line.removeprefix("data: ")) for line in lines[:3])
    assert text["choices"] == [{"index": 0, "text": "hi", "finish_reason": None, "logprobs": None}]
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]) == ([], {"total_tokens": 3})


async def test_an_error_in_a_completions_stream_is_in_band(proxy: Proxy) -> None:
    proxy.gateway.streams(event(CHUNKS[1]), failure("slow", http_status=429))
    answer = await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x", "stream": True})
    assert answer.text.split("\n\n")[1] == (
        'data: {"error":{"message":"slow","type":"rate_limit_error","code":"rate_limit_exceeded"}}'
    )
    assert "[DONE]" not in answer.text


async def test_a_completions_stream_whose_first_chunks_are_dropped_can_still_fail_with_a_status(proxy: Proxy) -> None:
    proxy.gateway.streams(event(CHUNKS[0]), failure("slow", http_status=429))
    assert (await proxy.post(COMPLETIONS, {"model": "m", "prompt": "x", "stream": True})).status == 429


# -- messages, Gemini, embeddings


@pytest.mark.parametrize("stream", ["null", "0", '"true"', "false"], ids=["CL-01", "zero", "text", "false"])
async def test_messages_stream_for_the_literal_true_only(proxy: Proxy, stream: str) -> None:
    await proxy.post("/v1/messages", f'{{"model":"m","stream":{stream}}}'.encode())
    assert proxy.gateway.request.stream is False


async def test_token_counts_are_counts(proxy: Proxy) -> None:
    proxy.gateway.answer = ClientResponse(status=200, body=b'{"input_tokens":3}')
    answer = await proxy.post("/v1/messages/count_tokens", {"model": "m"})
    assert answer.body == b'{"input_tokens":3}'
    assert proxy.gateway.request.operation is Operation.COUNT


GEMINI = [
    ("gemini-x:generateContent", "gemini-x", "gemini", Operation.EXECUTE),
    ("teamA/gemini-x(1024):countTokens", "teamA/gemini-x(1024)", "gemini", Operation.COUNT),
    ("teamA%2Fgemini-x:countTokens", "teamA/gemini-x", "gemini", Operation.COUNT),
    ("models/e%3AembedContent", "models/e", "gemini-embedding", Operation.EXECUTE),
    ("e:batchEmbedContents", "e", "gemini-embedding", Operation.EXECUTE),
]


@pytest.mark.parametrize(
    ("path", "model", "protocol", "operation"), GEMINI, ids=["plain", "GM-02", "encoded", "embed", "batch"]
)
async def test_the_gemini_path_names_model_and_method(
    proxy: Proxy, path: str, model: str, protocol: str, operation: Operation
) -> None:
    await proxy.post(f"/v1beta/models/{path}", b'{"model":"other","stream":true}')
    request = proxy.gateway.request
    assert (request.model, request.protocol, request.operation, request.stream) == (model, protocol, operation, False)


@pytest.mark.parametrize(
    "path",
    ["gemini-x:fly", "a:b:generateContent", ":generateContent", "gemini-x"],
    ids=["GM-03", "GM-04", "none", "no"],
)
async def test_an_unknown_gemini_action_is_geminis_404(proxy: Proxy, path: str) -> None:
    answer = await proxy.post(f"/v1beta/models/{path}", b"{}")
    assert (answer.status, answer.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert path in answer.json()["error"]["message"]
    assert proxy.gateway.requests == []


async def test_embeddings_are_an_execution_of_their_own_protocol(proxy: Proxy) -> None:
    await proxy.post("/v1/embeddings", b'{"model":"e","input":["a"],"stream":true}')
    request = proxy.gateway.request
    assert (request.protocol, request.model, request.stream) == ("openai-embedding", "e", False)

"""The service tier that an upstream says it used is kept beside the one that was asked for (credentials 12.12)."""

from typing import Any

import pytest

from host.management.records import usage_record
from host.pipeline.usage_of import tier_of_body
from pluginabi.payloads.lifecycle import ExecutorRegistration
from tests.support.pipeline import answering, client_request, executor, read_all, streaming, world

CHAT_END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}


class Kept:
    """A recorder that keeps the records as the queue shows them."""

    def __init__(self, wants_usage: bool = True) -> None:
        self.wants_usage = wants_usage
        self.records: list[dict[str, Any]] = []

    def used(self, record: Any, credential: Any, *, request: Any, answer_tier: str = "") -> None:
        self.records.append(usage_record(record, credential, request, answer_tier=answer_tier))

    def failed(self, request: Any) -> None: ...


@pytest.mark.parametrize(
    ("body", "tier"),
    [
        (b'{"service_tier": " priority ", "usage": {"prompt_tokens": 1}}', "priority"),
        (b'{"usage": {"input_tokens": 1, "service_tier": "standard"}}', "standard"),
        (b'{"service_tier": null, "usage": null}', ""),
        (b'{"service_tier": 5}', ""),
        (b'{"service_tier"', ""),
        (b"{}", ""),
    ],
    ids=["openai", "claude", "null", "no text", "cut off", "none"],
)
def test_where_an_answer_names_its_tier(body: bytes, tier: str) -> None:
    assert tier_of_body(body) == tier


async def test_a_record_has_the_tier_that_was_asked_for_and_the_one_that_served() -> None:
    w = world(executor(answering({"id": "x", "service_tier": "default"})))
    w.gateway._settler._recorder = kept = Kept()
    await w.gateway.execute(client_request({"model": "m", "service_tier": "flex"}))
    assert [(it["service_tier"], it["response_service_tier"]) for it in kept.records] == [("flex", "default")]


@pytest.mark.parametrize(
    ("protocol", "events"),
    [
        ("openai", [CHAT_END, {"choices": [], "usage": {"prompt_tokens": 1}, "service_tier": "scale"}]),
        (
            "claude",
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 1, "service_tier": "scale"}}},
                {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
                {"type": "message_stop"},
            ],
        ),
        (
            "openai-response",
            [{"type": "response.completed", "response": {"usage": {"input_tokens": 1}, "service_tier": "scale"}}],
        ),
    ],
)
async def test_the_tier_of_a_stream_is_read_where_it_reports_its_tokens(protocol: str, events: list[Any]) -> None:
    formats = ExecutorRegistration(input_formats=(protocol,), output_formats=(protocol,))
    w = world(executor(stream=streaming(*events), executor=formats))
    w.gateway._settler._recorder = kept = Kept()
    await read_all(await w.gateway.execute_stream(client_request(protocol=protocol, stream=True)))
    assert [it["response_service_tier"] for it in kept.records] == ["scale"]

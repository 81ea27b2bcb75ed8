"""usage.handle and request.complete."""

import asyncio

import pytest

from host.errors import RequestError
from pluginabi.errors import PluginError, PluginTransportError
from pluginabi.frames import Usage
from pluginabi.payloads.executor import ExecutorResponse
from tests.support.pipeline import FakePlugin, answering, client_request, compat_config, executor, world

USAGE, COMPLETE = "usage.handle", "request.complete"


def watcher(**fields) -> FakePlugin:
    return FakePlugin(id="watcher", hooks={USAGE: lambda _: None, COMPLETE: lambda _: None}, **fields)


OPENAI_USAGE = {
    "usage": {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "total_tokens": 30,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 6},
    }
}
CLAUDE_USAGE = {
    "usage": {
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 2,
    }
}
GEMINI_USAGE = {
    "usageMetadata": {
        "promptTokenCount": 10,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 6,
        "cachedContentTokenCount": 4,
        "totalTokenCount": 36,
    }
}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (
            OPENAI_USAGE,
            Usage(input_tokens=10, output_tokens=20, total_tokens=30, cached_tokens=4, reasoning_tokens=6),
        ),
        (CLAUDE_USAGE, Usage(input_tokens=10, output_tokens=20, cache_read_tokens=3, cache_creation_tokens=2)),
        (GEMINI_USAGE, Usage(input_tokens=10, output_tokens=20, reasoning_tokens=6, cached_tokens=4, total_tokens=36)),
        ({"usage": None}, Usage()),
        ({"usage": "nonsense"}, Usage()),
        ({"usage": {"prompt_tokens": -1, "total_tokens": True}}, Usage()),
        ([1], Usage()),
    ],
)
async def test_usage_is_read_from_the_answer_of_every_family(document, expected):
    seen = watcher()
    w = world(executor(answering(document)), seen)
    await w.gateway.execute(client_request())
    await w.settled()
    assert [it.usage for it in seen.seen(USAGE)] == [expected]


async def test_a_usage_record_says_who_what_and_where():
    seen = watcher()
    w = world(executor(answering(OPENAI_USAGE)), seen)
    await w.gateway.execute(client_request({"model": "m", "service_tier": "flex", "reasoning_effort": "low"}))
    await w.settled()
    (record,) = seen.seen(USAGE)
    credential = w.gateway.state.pool.credentials[0]
    assert (record.provider, record.executor, record.model, record.requested_model) == (
        "openai-compatible-acme",
        "upstream",
        "m",
        "m",
    )
    assert (record.credential_id, record.credential_label, record.source) == (
        credential.id,
        "acme",
        credential.attributes["source"],
    )
    assert (record.caller, record.endpoint, record.attempt) == ("tester", "POST /v1/chat/completions", 1)
    assert (record.service_tier, record.reasoning_effort) == ("flex", "low")
    assert record.requested_at.endswith("Z")
    assert "k1" not in repr(record)


async def test_every_attempt_that_reached_an_upstream_has_its_record_and_the_request_one_completion():
    answers = [PluginError("busy", http_status=503), ExecutorResponse()]
    seen = watcher()
    w = world(executor(lambda _: answers.pop(0)), seen, config=compat_config(keys=("k1", "k2")))
    await w.gateway.execute(client_request())
    await w.settled()
    assert [(it.attempt, it.failed) for it in seen.seen(USAGE)] == [(1, True), (2, False)]
    assert [it.outcome for it in seen.seen(COMPLETE)] == ["succeeded"]


async def test_an_attempt_that_never_reached_an_upstream_has_no_record():
    seen = watcher()
    down = PluginTransportError("upstream", "executor.execute", phase="unavailable", cause="down")
    w = world(executor(lambda _: down), seen)
    with pytest.raises(PluginTransportError):
        await w.gateway.execute(client_request())
    await w.settled()
    assert seen.seen(USAGE) == []
    assert [(it.outcome, it.status, it.error.code) for it in seen.seen(COMPLETE)] == [
        ("failed", 502, "plugin_unavailable")
    ]


async def test_a_request_that_cannot_be_served_is_completed_as_failed_with_its_status():
    seen = watcher()
    w = world(executor(answering()), seen)
    with pytest.raises(RequestError):
        await w.gateway.execute(client_request(model="unknown"))
    await w.settled()
    (complete,) = seen.seen(COMPLETE)
    assert (complete.outcome, complete.status, complete.error.code) == ("failed", 400, "model_not_found")
    assert complete.duration_ms >= 0
    assert complete.started_at <= complete.completed_at


async def test_a_cancelled_attempt_may_have_been_billed_so_it_has_its_record():
    entered, never = asyncio.Event(), asyncio.Event()

    async def execute(_):
        entered.set()
        await never.wait()

    seen = watcher()
    w = world(executor(execute), seen)
    task = asyncio.create_task(w.gateway.execute(client_request()))
    async with asyncio.timeout(5):
        await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await w.settled()
    assert [(it.failed, it.error.code) for it in seen.seen(USAGE)] == [(True, "cancelled")]


async def test_a_failing_settlement_hook_changes_nothing_for_the_client():
    broken = FakePlugin(id="b", hooks={USAGE: lambda _: PluginError("x"), COMPLETE: lambda _: ValueError("bug")})
    seen = watcher()
    w = world(executor(answering()), broken, seen)
    assert (await w.gateway.execute(client_request())).status == 200
    await w.settled()
    assert len(seen.seen(COMPLETE)) == 1


async def test_after_the_tasks_have_stopped_a_request_still_ends():
    w = world(executor(answering()), watcher())
    await w.tasks.stop()
    assert (await w.gateway.execute(client_request())).status == 200


async def test_the_observer_learns_how_each_request_ended():
    w = world(executor(answering(OPENAI_USAGE)))
    await w.gateway.execute(client_request())
    (done,) = w.completed
    assert (done.outcome, done.status, done.provider, done.model, done.attempts) == (
        "succeeded",
        200,
        "openai-compatible-acme",
        "m",
        1,
    )
    assert done.usage is not None
    assert done.usage.total_tokens == 30

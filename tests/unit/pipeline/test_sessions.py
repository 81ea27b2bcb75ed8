"""Requests that belong to one credential more than to others."""

import asyncio
import json

import pytest

from host.config.model import CompatKey, CompatProvider, Config, ModelEntry, Routing
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.errors import RequestError
from host.pipeline.request import Operation
from host.pipeline.state import build_state
from host.state.bindings import SharedBindings
from host.state.memory import MemoryStore
from host.tasks import TaskGroup
from pluginabi.body import Body
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.executor import ExecutorResponse
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import (
    FakeItems,
    FakePlugin,
    World,
    answering,
    client_request,
    compat_config,
    executor,
    read_all,
    snapshot,
    world,
)

EXECUTE = "executor.execute"
AFFINITY = Routing(session_affinity=True)
QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=60_000))


def sticky(upstream: FakePlugin, *plugins: FakePlugin, keys: int = 3, **fields) -> World:
    names = tuple(f"k{number}" for number in range(keys))
    return world(upstream, *plugins, config=compat_config(keys=names, **{"routing": AFFINITY, **fields}))


async def ask(w: World, session: str | None = "s", **fields) -> str:
    """The handle of the credential that served it."""
    headers = {"X-Session-ID": session} if session else {}
    await w.gateway.execute(client_request(headers=headers, **fields))
    upstream = next(it for it in w.gateway.state.plugins.plugins.values() if it.plugin_id == "upstream")
    return upstream.handle.calls[-1][1].credential.handle


async def test_E13_a_session_stays_on_its_credential_while_others_take_turns():
    w = sticky(executor(answering()))
    assert len({await ask(w) for _ in range(10)}) == 1
    assert len({await ask(w, None) for _ in range(3)}) == 3


async def test_E14_a_session_whose_credential_rests_moves_and_stays_where_it_moved():
    failing: set[str] = set()
    upstream = executor(
        lambda it: PluginError("slow", http_status=429) if it.credential.handle in failing else ExecutorResponse()
    )
    w = sticky(upstream)
    failing.add(first := await ask(w))
    second = await ask(w)
    assert second != first
    w.clock.now_s += 10
    failing.clear()
    assert [await ask(w) for _ in range(4)] == [second] * 4


async def test_E14_a_request_that_ends_after_its_session_has_moved_leaves_it_where_it_is():
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def execute(request):
        if len(upstream.seen(EXECUTE)) == 1:
            entered.set()
            await go_on.wait()
        return ExecutorResponse()

    upstream = executor(execute)
    w = sticky(upstream)
    async with asyncio.timeout(10):
        slow = asyncio.create_task(ask(w))
        await entered.wait()
        pool, first = w.gateway.state.pool, upstream.seen(EXECUTE)[0].credential.handle
        pool.failed(pool.by_handle[first], "m", classify(ErrorBody(http_status=429)), cause=NO_CAUSE)
        second = await ask(w)
        go_on.set()
        await slow
    w.clock.now_s += 10
    assert second != first
    assert [await ask(w) for _ in range(2)] == [second] * 2


async def test_E16_sessions_of_other_models_and_other_callers_have_their_own_credential():
    w = sticky(executor(answering()), models=("m", "n"))
    first = await ask(w)
    assert await ask(w, model="n") == first  # the first turn of its own round robin
    other = client_request().principal.__class__(name="other", provider="x", scope="scope-of-other")
    assert await ask(w, principal=other) != first
    assert await ask(w) == first


async def test_a_session_outlives_a_reload_that_changes_which_provider_has_most_credentials():
    def config(*counts: int) -> Config:
        return Config(routing=AFFINITY, openai_compatibility=[
            CompatProvider(name=name, base_url=f"https://{name}.test", models=[ModelEntry(name="m")],
                           api_key_entries=[CompatKey(api_key=f"{name}{number}") for number in range(count)])
            for name, count in zip("ab", counts, strict=True)
        ])  # fmt: skip

    upstream = executor(answering())
    w = world(upstream, config=config(2, 1))
    await ask(w, None)
    first = await ask(w)
    w.gateway.state = build_state(config(2, 5), snapshot(upstream), previous=w.gateway.state)
    assert [await ask(w) for _ in range(3)] == [first] * 3
    assert await ask(w, model="M") == first


async def test_E17_the_second_turn_of_a_conversation_finds_the_credential_of_the_first():
    w = sticky(executor(answering()))
    first = [{"role": "user", "content": "hi"}]
    second = [*first, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    third = [*second, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and?"}]
    handles = [await ask(w, None, body={"model": "m", "messages": it}) for it in (first, second, third)]
    assert len(set(handles)) == 1


async def test_E12_without_a_session_the_strategy_decides():
    w = sticky(executor(answering()))
    assert len({await ask(w, None, body={"model": "m"}) for _ in range(3)}) == 3


async def test_a_session_is_forgotten_some_time_after_its_last_request():
    w = sticky(executor(answering()), routing=Routing(session_affinity=True, session_affinity_ttl="10s"))
    w.gateway.state.pool.health.sessions._clock = w.clock
    first = await ask(w)
    w.clock.now_s += 9
    assert await ask(w) == first
    w.clock.now_s += 10
    assert await ask(w) != first


async def test_a_session_keeps_its_credential_although_a_better_tier_recovers_and_the_reason_is_shown():
    tiers = [
        CompatProvider(name=name, base_url=f"https://{name}.test", priority=priority, models=[ModelEntry(name="m")],
                       api_key_entries=[CompatKey(api_key=name)])
        for name, priority in (("best", 1), ("next", 0))
    ]  # fmt: skip
    failing = {"best"}
    labels: dict[str, str] = {}

    def execute(request):
        is_failing = labels[request.credential.handle] in failing
        return PluginError("slow", http_status=429) if is_failing else ExecutorResponse()

    w = world(executor(execute), config=Config(openai_compatibility=tiers, routing=AFFINITY))
    labels |= {it.handle: it.label for it in w.gateway.state.pool.credentials}
    assert labels[await ask(w)] == "next"
    failing.clear()
    w.clock.now_s += 10
    assert labels[await ask(w)] == "next"
    picked = [it for it in w.decisions("picked") if it["by"] == "session"]
    assert picked[-1]["source"] == "x-session-id"


async def test_a_session_whose_credential_failed_is_free_to_go_elsewhere():
    upstream = executor(lambda _: PluginError("no", http_status=500))
    w = sticky(upstream, disable_cooling=True, max_retry_credentials=1)
    for _ in range(3):
        with pytest.raises(PluginError):
            await ask(w)
    assert len({seen.credential.handle for seen in upstream.seen(EXECUTE)}) == 3


async def test_counting_tokens_follows_a_session_and_never_moves_it():
    """An upstream may lack the endpoint: the conversation stays where the upstream has it in its cache."""
    upstream = executor(answering(), count=lambda _: PluginError("no such endpoint", http_status=404))
    w = sticky(upstream)
    counted = client_request(headers={"X-Session-ID": "s"}, operation=Operation.COUNT)
    bound = await ask(w)
    for _ in range(2):
        with pytest.raises(PluginError):
            await w.gateway.execute(counted)
        assert upstream.seen("executor.count_tokens")[-3].credential.handle == bound
        assert await ask(w) == bound


async def test_a_scheduler_comes_before_a_session_and_may_leave_it_to_the_session():
    answers = [SchedulerPickResponse(), SchedulerPickResponse(), None]
    scheduler = FakePlugin(id="s", hooks={"scheduler.pick": lambda it: answers.pop(0) or by_id(it)})

    def by_id(request) -> SchedulerPickResponse:
        return SchedulerPickResponse(auth_id=request.candidates[2].id)

    w = sticky(executor(answering()), scheduler)
    first = await ask(w)
    assert await ask(w) == first
    assert await ask(w) != first


async def test_a_weight_of_nothing_moves_a_session():
    w = sticky(executor(answering()), keys=2, routing=Routing(session_affinity=True, strategy="wrr"))
    handle = await ask(w)
    bound = next(it for it in w.gateway.state.pool.credentials if it.handle == handle)
    object.__setattr__(bound, "weight", 0)
    assert await ask(w) != handle


RESPONSE = {"id": "resp_1", "output": [{"type": "reasoning", "id": "rs_1", "encrypted_content": "gAAA"}]}
FOLLOW_UP = {"model": "m", "previous_response_id": "resp_1"}


async def respond(w: World, body: object = None, **fields) -> str:
    request = client_request(body or {"model": "m", "input": "hi"}, protocol="openai-response", **fields)
    await w.gateway.execute(request)
    upstream = w.gateway.state.plugins.plugins["upstream"]
    return upstream.handle.calls[-1][1].credential.handle


def responses(**fields) -> World:
    return world(executor(answering(RESPONSE)), config=compat_config(keys=("k1", "k2", "k3"), **fields))


@pytest.mark.parametrize(
    "body",
    [FOLLOW_UP, {"model": "m", "input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}],
    ids=["previous_response_id", "encrypted_content"],
)
async def test_a_request_goes_to_the_account_that_made_what_it_refers_to(body):
    w = responses()
    maker = await respond(w)
    assert [await respond(w, body) for _ in range(4)] == [maker] * 4
    assert w.decisions("provider_state")[0]["rule"] == "required"


async def test_what_the_only_account_made_is_remembered_when_others_come():
    upstream = executor(lambda _: answering({"id": f"resp_{len(upstream.seen(EXECUTE))}"})(_))
    w = world(upstream)
    maker = await respond(w)
    keys = compat_config(keys=("k0", "k1", "k2"))
    w.gateway.state = build_state(keys, w.gateway.state.plugins, previous=w.gateway.state)
    assert [await respond(w, FOLLOW_UP) for _ in range(4)] == [maker] * 4


async def test_a_streamed_answer_is_remembered_before_the_client_has_its_end():
    event = b"event: response.completed\ndata: " + json.dumps(
        {"type": "response.completed", "response": RESPONSE}
    ).encode() + b"\n\n"  # fmt: skip
    upstream = executor(answering(RESPONSE), stream=lambda _: FakeItems([event]))
    w = world(upstream, config=compat_config(keys=("k1", "k2", "k3")))
    stream = await w.gateway.execute_stream(client_request({"model": "m"}, protocol="openai-response", stream=True))
    await read_all(stream)
    maker = upstream.seen("executor.execute_stream")[0].credential.handle
    assert [await respond(w, FOLLOW_UP) for _ in range(4)] == [maker] * 4


async def test_a_chat_request_leaves_nothing_to_remember_even_where_the_upstream_makes_responses():
    w = responses()
    await ask(w, None)
    assert w.gateway.state.pool.health.origins.is_empty


async def test_while_that_account_rests_the_request_is_refused_with_the_time_to_wait():
    w = responses()
    maker = await respond(w)
    resting = next(it for it in w.gateway.state.pool.credentials if it.handle == maker)
    error = PluginError("slow", http_status=429, retry_after_ms=60_000)
    upstream = w.gateway.state.plugins.plugins["upstream"]
    upstream.handle.hooks[EXECUTE] = lambda it: (
        error if it.credential.handle == maker else ExecutorResponse(body=Body.from_value({}))
    )
    with pytest.raises(PluginError):
        await respond(w, FOLLOW_UP)
    with pytest.raises(RequestError) as refused:
        await respond(w, FOLLOW_UP)
    assert (refused.value.body.http_status, refused.value.body.retry_after_ms) == (429, 60_000)
    assert w.gateway.state.pool.health.tallies.of(resting.id)[1] == 1
    assert await respond(w) != maker


async def test_as_a_preference_another_account_is_asked_while_the_maker_rests():
    w = responses(routing=Routing(provider_state="preferred"))
    maker = await respond(w)
    assert await respond(w, FOLLOW_UP) == maker
    upstream = w.gateway.state.plugins.plugins["upstream"]
    error = PluginError("slow", http_status=429, retry_after_ms=60_000)
    upstream.handle.hooks[EXECUTE] = lambda it: error if it.credential.handle == maker else ExecutorResponse()
    assert await respond(w, FOLLOW_UP) != maker


@pytest.mark.parametrize("why", ["ignored", "made elsewhere", "another caller", "gone"])
async def test_otherwise_the_request_goes_wherever_its_turn_is(why):
    w = responses(routing=Routing(provider_state="ignored" if why == "ignored" else "required"))
    maker = await respond(w)
    body, fields = dict(FOLLOW_UP), {}
    if why == "made elsewhere":
        body["previous_response_id"] = "resp_9"
    if why == "another caller":
        fields["principal"] = client_request().principal.__class__(name="b", provider="x", scope="b")
    if why == "gone":
        bound = w.gateway.state.pool.health.origins
        for key in list(bound._bound):
            bound.put(key, "a credential that was removed", ttl_s=60)
    assert await respond(w, body, **fields) != maker


async def test_a_session_that_another_process_moved_is_found_where_it_is_now():
    store, tasks = MemoryStore(), TaskGroup("test")
    nodes = [sticky(executor(answering()), keys=20) for _ in range(2)]
    for w in nodes:
        w.gateway.state.pool.health.sessions = SharedBindings(store, "sessions", tasks)
    one, two = nodes
    labels = [{it.handle: it.id for it in w.gateway.state.pool.credentials} for w in nodes]

    async def on(number: int) -> str:
        found = labels[number][await ask(nodes[number])]
        await tasks.join()
        return found

    for _ in range(3):
        await ask(two, None)  # whose turn it is differs between the two
    first = await on(0)
    assert await on(1) == first
    for w in nodes:
        w.gateway.state.pool.failed(w.gateway.state.pool.by_id[first], "m", QUOTA, cause=NO_CAUSE)
    second = await on(1)
    assert second != first
    assert await on(0) == second
    [picked] = [it for it in one.decisions("picked") if it["by"] == "session" and it["credential"] == second]
    assert picked["source"] == "x-session-id"


async def test_a_binding_to_a_credential_that_is_gone_or_unknown_is_only_a_hint():
    w = sticky(executor(answering()))
    first = await ask(w)
    bound = w.gateway.state.pool.health.sessions
    for key in list(bound._bound):
        bound.put(key, "removed", ttl_s=60)
    second = await ask(w)
    assert second != first
    assert await ask(w) == second
    assert [it["why"] for it in w.decisions("session") if it["outcome"] == "moved"] == ["gone"]

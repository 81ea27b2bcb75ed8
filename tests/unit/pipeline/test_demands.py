"""What an endpoint asks of the credentials: one of them, no free plans, rather one with WebSockets."""

import pytest

from host.config.model import Config, Routing
from host.credentials.classify import classify
from host.credentials.cooldown import NO_CAUSE
from host.credentials.manager import CredentialManager
from host.credentials.records import Credential
from host.errors import RequestError
from host.pipeline.request import Demands
from host.pipeline.state import build_state
from pluginabi.errors import ErrorBody, PluginError
from pluginabi.payloads.common import ModelInfo
from pluginabi.payloads.lifecycle import ExecutorRegistration
from pluginabi.payloads.routing import SchedulerPickResponse
from tests.support.pipeline import FakePlugin, World, answering, client_request, executor, world

EXECUTE = "executor.execute"
QUOTA = classify(ErrorBody(http_status=429, retry_after_ms=60_000))
OVER_WEBSOCKET = Demands(websocket=True)


def account(name: str, **fields) -> Credential:
    return Credential(
        id=name, provider=fields.pop("provider", "xai"), label=name, source_kind="file", auth_kind="oauth", path=name,
        handle=f"h-{name}", attributes={"plan_type": fields.pop("plan", "")}, **fields,
    )  # fmt: skip


def accounts(*given: Credential, plugins: tuple[FakePlugin, ...] = (), prefers: bool = True, **config) -> World:
    registered = ExecutorRegistration(input_formats=["*"], output_formats=["*"], prefers_websockets=prefers)
    upstream = executor(answering(), providers=["xai", "codex"], models=[ModelInfo(id="m")], executor=registered)
    other = executor(answering(), id="plain", providers=["plain"], models=[ModelInfo(id="m")])
    w = world(upstream, other, *plugins, config=Config(**config))
    manager = CredentialManager()
    for it in given:
        manager.set_source(it.id, [it])
    state = w.gateway.state
    w.gateway.state = build_state(state.config, state.plugins, previous=state, manager=manager)
    return w


async def served(w: World, demands: Demands, count: int = 1, **fields) -> str:
    """The names of the accounts that served so many requests."""
    found = []
    for _ in range(count):
        await w.gateway.execute(client_request(demands=demands, **fields))
        found.append(calls(w)[-1].credential.handle.removeprefix("h-"))
    return " ".join(found)


def calls(w: World) -> list:
    views = w.gateway.state.plugins.plugins
    seen = [call for name in ("upstream", "plain") for call in views[name].handle.calls]
    return [params for method, params in seen if method == EXECUTE]


def rest(w: World, name: str) -> None:
    pool = w.gateway.state.pool
    pool.failed(pool.by_id[name], "m", QUOTA, cause=NO_CAUSE)


async def test_D15_a_free_plan_does_not_serve_what_only_paid_plans_can():
    w = accounts(account("free", plan="Free", provider="codex"), account("plus", plan="plus", provider="codex"))
    assert await served(w, Demands(disallow_free_auth=True), 3) == "plus plus plus"
    assert calls(w)[0].metadata["disallow_free_auth"] is True
    rest(w, "plus")
    with pytest.raises(RequestError) as refused:
        await served(w, Demands(disallow_free_auth=True))
    assert refused.value.body.http_status == 429
    assert await served(w, Demands()) == "free"


async def test_D15_a_scheduler_is_not_shown_free_plans_either_and_cannot_name_them():
    asked = FakePlugin(id="s", hooks={"scheduler.pick": lambda _: SchedulerPickResponse(auth_id="free")})
    w = accounts(account("free", plan="free"), account("plus"), plugins=(asked,))
    assert await served(w, Demands(disallow_free_auth=True)) == "plus"
    [seen] = asked.seen("scheduler.pick")
    assert [it.id for it in seen.candidates] == ["plus"]
    assert seen.candidates_total == 1


async def test_D16_D17_over_a_websocket_credentials_with_websockets_come_before_a_better_priority():
    w = accounts(account("a", priority=10), account("b", websockets=True), account("c", websockets=True))
    assert await served(w, OVER_WEBSOCKET, 4) == "b c b c"
    assert await served(w, Demands(), 2) == "a a"
    rest(w, "b")
    rest(w, "c")
    assert await served(w, OVER_WEBSOCKET) == "a"


async def test_D17_nobody_is_preferred_whose_executor_does_not_ask_for_it():
    w = accounts(account("a", priority=10), account("b", websockets=True), prefers=False)
    assert await served(w, OVER_WEBSOCKET, 2) == "a a"
    w = accounts(account("a", priority=10), account("b", websockets=True, provider="plain"))
    assert await served(w, OVER_WEBSOCKET, 2) == "a a"


async def test_D17_after_a_failure_the_next_with_websockets_is_tried_before_all_others():
    w = accounts(account("a", priority=10), account("b", websockets=True), account("c", websockets=True))
    views = w.gateway.state.plugins.plugins
    answers = [PluginError("no", http_status=500), PluginError("no", http_status=500)]
    answer = answering()
    views["upstream"].handle.hooks[EXECUTE] = lambda it: answers.pop() if answers else answer(it)
    assert await served(w, OVER_WEBSOCKET) == "a"
    assert [it.credential.handle for it in calls(w)] == ["h-b", "h-c", "h-a"]


async def test_D17_a_scheduler_is_shown_those_with_websockets_while_one_is_free():
    asked = FakePlugin(id="s", hooks={"scheduler.pick": lambda _: None})
    w = accounts(account("a", priority=10), account("b", websockets=True), plugins=(asked,))
    await served(w, OVER_WEBSOCKET)
    rest(w, "b")
    await served(w, OVER_WEBSOCKET)
    assert [[it.id for it in seen.candidates] for seen in asked.seen("scheduler.pick")] == [["b"], ["a"]]


async def test_D18_a_pinned_credential_is_used_whatever_else_is_preferred():
    w = accounts(account("a"), account("b", websockets=True, priority=10))
    pinned = Demands(websocket=True, pinned_auth_id="a")
    assert await served(w, pinned, 3) == "a a a"
    assert calls(w)[0].metadata["pinned_auth_id"] == "a"


@pytest.mark.parametrize("strategy", ["round-robin", "weighted-round-robin", "fill-first"])
async def test_a_pinned_credential_that_rests_or_is_unknown_is_not_replaced(strategy):
    w = accounts(account("a"), account("b"), routing=Routing(strategy=strategy))
    assert await served(w, Demands(pinned_auth_id="b"), 2) == "b b"
    rest(w, "b")
    with pytest.raises(RequestError) as refused:
        await served(w, Demands(pinned_auth_id="b"))
    assert (refused.value.body.http_status, refused.value.body.retry_after_ms) == (429, 60_000)
    with pytest.raises(RequestError) as refused:
        await served(w, Demands(pinned_auth_id="gone"))
    assert (refused.value.body.http_status, refused.value.body.code) == (503, "auth_not_found")


async def test_a_scheduler_is_shown_only_the_pinned_credential():
    asked = FakePlugin(id="s", hooks={"scheduler.pick": lambda _: SchedulerPickResponse(auth_id="a")})
    w = accounts(account("a"), account("b"), plugins=(asked,))
    assert await served(w, Demands(pinned_auth_id="b")) == "b"
    assert [it.id for it in asked.seen("scheduler.pick")[0].candidates] == ["b"]
    assert w.decisions("pick_refused")[0]["why"] == "not for this request"


@pytest.mark.parametrize(("websockets", "kept"), [(True, True), (None, False)])
async def test_generate_reaches_only_upstreams_that_are_spoken_to_over_a_websocket(websockets, kept):
    w = accounts(account("a", websockets=websockets))
    body = {"model": "m", "generate": False, "messages": []}
    await served(w, OVER_WEBSOCKET, body=body)
    await served(w, Demands(), body=body)
    seen = [it.body.value() for it in calls(w)]
    assert ["generate" in it for it in seen] == [kept, True]
    assert seen[0]["messages"] == []


async def test_requests_of_one_connection_are_a_session_where_they_name_none():
    w = accounts(account("a"), account("b"), routing=Routing(session_affinity=True))
    one, two = (Demands(execution_session_id=name) for name in ("e1", "e2"))
    body = {"model": "m"}
    assert await served(w, one, body=body) == "a"
    assert await served(w, two, body=body) == "b"
    assert await served(w, one, 2, body=body) == "a a"
    assert calls(w)[0].metadata["execution_session_id"] == "e1"
    assert [it["source"] for it in w.decisions("picked") if it["by"] == "session"] == ["execution"] * 2
